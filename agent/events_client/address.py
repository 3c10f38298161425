"""Where NATS is, as users say it: an address, or all the options."""

from dataclasses import replace
from urllib.parse import urlsplit

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.domain.errors import SettingsError

NAME = "akosha events client"
"""What the server's operator sees."""

_SCHEMES = ("nats", "tls", "ws", "wss")


def options_of(server: str | NatsOptions, login: Login | None, tls: Tls | None) -> NatsOptions:
    """Return all the options; `login` and `tls` take the place of those in them. Raises SettingsError."""
    options = server if isinstance(server, NatsOptions) else NatsOptions(servers=_servers(server), name=NAME)
    return replace(options, login=login or options.login, tls=tls or options.tls)


def _servers(text: str) -> tuple[str, ...]:
    """Return the addresses, one by one. A wrong one is not repeated in the error: there may be a password in it."""
    found = tuple(url.strip() for url in text.split(","))
    if not all(map(_is_address, found)):
        raise SettingsError(
            "that is no address of a NATS server",
            hint="nats://, tls://, ws:// or wss://HOST[:PORT], several of them with commas",
        )
    return found


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
