"""The secrets that this process knows: from its settings, the files that they name, and the environment."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from agent.settings import Settings, nats_servers
from agent.settings.model import SECRET

MAX_BYTES = 64 * 1024

LONG_PIECE = 12
"""A piece of a webhook's path that is at least so long may be a secret, as in Slack's and Healthchecks' URLs."""

_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LINES = re.compile(r"^[\w.+/=-]{20,}\s*$", re.MULTILINE)
"""Matches the JWT and the seed in a credentials file, and the key in a key file."""


def known_secrets(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the values that must never be shown. Reads the NATS files in the settings; ignores unreadable ones."""
    for key in SECRET:
        value = getattr(settings, key)
        assert isinstance(value, SecretStr)
        yield value.get_secret_value()
    for url in (*nats_servers(settings.agent_nats_url), settings.http_endpoint, settings.cloud_endpoint):
        yield from _credentials(url)
    for webhook in settings.agent_webhooks:
        url = webhook.url.get_secret_value()
        parts = urlsplit(url)
        yield from (url, webhook.secret.get_secret_value(), parts.query, *_credentials(url))
        yield from (piece for piece in parts.path.split("/") if len(piece) >= LONG_PIECE)
    for file in (settings.agent_nats_credentials_file, settings.agent_nats_nkey_file, settings.agent_nats_key_file):
        if file is not None:
            yield from (found.strip() for found in _LINES.findall(_read(file)))
    yield from (environ.get(name, "") for name in _VARIABLES)
    for name, value in environ.items():
        if name.lower() in _PROXIES:
            yield from _credentials(value)


def _credentials(url: str) -> Iterator[str]:
    """Yield the password of a URL, or the user name if it is a token without a password."""
    with suppress(ValueError):
        parts = urlsplit(url)
        secret = parts.password or ("" if parts.password is not None else parts.username) or ""
        yield from (secret, unquote(secret))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
