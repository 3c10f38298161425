"""The address of the Akosha server. Its `quote` makes the server's messages safe to show."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from agent.adapters.tcp_probe import Proxy, proxy_for
from agent.domain.plain_text import MASK, printable
from agent.settings.endpoints import is_loopback, without_credentials

MAX_QUOTE_CHARACTERS = 300
"""Maximum length of a quoted server message."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The validated address of an MCP server, and its bearer token ("" for none)."""

    endpoint: str
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return without_credentials(self.endpoint)

    @property
    def origin(self) -> str:
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine; then no proxy is used."""
        return is_loopback(urlsplit(self.endpoint).hostname or "")

    @property
    def tcp_address(self) -> tuple[str, int]:
        """Host and port to connect to without a proxy."""
        parts = urlsplit(self.endpoint)
        return parts.hostname or "", parts.port or (443 if self.is_encrypted else 80)

    @property
    def proxy(self) -> Proxy | None:
        """The server's proxy; None for a server on this machine."""
        parts = urlsplit(self.endpoint)
        return None if self.is_local else proxy_for(parts.hostname or "", parts.scheme, "all")

    @property
    def is_encrypted(self) -> bool:
        return urlsplit(self.endpoint).scheme == "https"

    def quote(self, detail: object) -> str:
        """Return a server's message as one printable line of at most 300 characters, with the token masked."""
        text = as_text(detail)
        if self.token:
            text = text.replace(self.token, MASK)
        text = printable(" ".join(text[: MAX_QUOTE_CHARACTERS * 10].split()))
        return text if len(text) <= MAX_QUOTE_CHARACTERS else text[: MAX_QUOTE_CHARACTERS - 3] + "..."


def as_text(detail: object) -> str:
    """Return str() of parsed JSON, which may be nested deeper than the recursion limit."""
    try:
        return str(detail)
    except RecursionError:
        return "nested too deeply to show"
