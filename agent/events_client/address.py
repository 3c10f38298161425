"""The address of NATS as callers pass it: a URL, or all options."""

from dataclasses import replace
from urllib.parse import urlsplit

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.domain.errors import SettingsError

NAME = "akosha events client"
"""The client name that the server's operator sees."""

_SCHEMES = ("nats", "tls", "ws", "wss")


def options_of(server: str | NatsOptions, login: Login | None, tls: Tls | None) -> NatsOptions:
    """Return all options; `login` and `tls` override those in them. Raises SettingsError."""
    options = server if isinstance(server, NatsOptions) else NatsOptions(servers=_servers(server), name=NAME)
    return replace(options, login=login or options.login, tls=tls or options.tls)


def _servers(text: str) -> tuple[str, ...]:
    """Return the addresses. The error does not quote a wrong one: it may contain a password."""
    found = tuple(url.strip() for url in text.split(","))
    if not all(map(_is_address, found)):
        raise SettingsError(
            "this is no address of a NATS server",
            hint="nats://, tls://, ws:// or wss://HOST[:PORT], several of them with commas",
        )
    return found


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
