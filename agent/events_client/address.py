"""The address of NATS, given as a URL or as NatsOptions."""

from dataclasses import replace
from urllib.parse import urlsplit

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.domain.errors import SettingsError

NAME = "akosha events client"
"""The client name, visible to the server's operator."""

_SCHEMES = ("nats", "tls", "ws", "wss")


def options_of(server: str | NatsOptions, login: Login | None, tls: Tls | None) -> NatsOptions:
    """Return the options; `login` and `tls` override those of `server`. Raises SettingsError."""
    options = server if isinstance(server, NatsOptions) else NatsOptions(servers=_servers(server), name=NAME)
    return replace(options, login=login or options.login, tls=tls or options.tls)


def _servers(text: str) -> tuple[str, ...]:
    """Return the addresses. The error does not quote an invalid address: it may contain a password."""
    found = tuple(url.strip() for url in text.split(","))
    if not all(map(_is_address, found)):
        raise SettingsError(
            "the address of the NATS server is invalid",
            hint="use nats://, tls://, ws:// or wss://HOST[:PORT]; separate several with commas",
        )
    return found


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
