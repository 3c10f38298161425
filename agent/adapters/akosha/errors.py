"""Errors of an Akosha server as SinkErrors: where, what, the cure, and whether it may pass."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

from agent.adapters.akosha.server_address import ServerAddress
from agent.domain.errors import SinkError

ADDRESS = "is akosha_http_endpoint the address of an Akosha server? It usually ends in /mcp"
PORTAL = f"does this network want you to sign in first (a captive portal)? Otherwise, {ADDRESS}"
TOKEN = (
    "set akosha_http_token to a token that the server takes; a running agent reads it at "  # noqa: S105 - a setting
    "systemctl --user reload akosha-agent, or kill -HUP"
)
VERSION = "update Akosha or akosha-agent"
UNEXPECTED = "is akosha_http_endpoint the address of an Akosha server? The log has the traceback"
SLOW = "see to the server, or raise akosha_upload_timeout_seconds"

MAX_RETRY_AFTER = 24 * 3600.0

_TOO_LARGE, _MALFORMED, _UNPROCESSABLE = 413, 400, 422
_UNKNOWN = (404, 405, 410)
_TRANSIENT = frozenset({408, 421, 423, 425, 429})
_SERVER_FAULT, _NOT_IMPLEMENTED = 500, 501


class Untrusted(SinkError):  # noqa: N818 - the name says the state of the world
    """TLS failed on this side or the other: certificates may be replaced, and are read when a client is built."""


class SessionGone(SinkError):  # noqa: N818 - the name says the state of the world
    """The server does not know our session (any more): it was restarted, or forgot it."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__(
            f"{address}: the server does not know the session that it has just begun",
            hint="are there several servers behind one address? Sessions must stick to one",
            transient=True,
        )


class Rejected(SinkError):  # noqa: N818
    """The server would not look at a request: something in it is not as it must be. `reason`: its own words."""

    def __init__(self, address: ServerAddress, reason: str) -> None:
        super().__init__(f"{address}: the server refuses what is sent: {reason}", hint=VERSION)
        self.reason = reason


class ToolGone(SinkError):  # noqa: N818
    """The server no longer offers a tool that it offered when the session began."""

    def __init__(self, address: ServerAddress, tool: str) -> None:
        super().__init__(f"{address}: there is no tool {tool} any more", hint="was Akosha replaced?", transient=True)


def server_trouble(address: ServerAddress, why: str) -> SinkError:
    """The server's own trouble, in its words."""
    return SinkError(f"{address}: the server is in trouble: {why}", hint="see to the server", transient=True)


def garbled(address: ServerAddress, what: str) -> SinkError:
    """An answer that is none, or not the whole: what was asked may have been done."""
    return SinkError(f"{address}: {what}", hint="does something between here and the server spoil it?", transient=True)


def compressed(address: ServerAddress, encoding: str) -> SinkError:
    """A compressed answer. Only `identity` is accepted: an answer must not unpack to a multiple of its limit."""
    return garbled(address, f"the answer is compressed ({address.quote(encoding)}), which the agent did not ask for")


def not_mcp(address: ServerAddress, what: str, *, hint: str = ADDRESS) -> SinkError:
    """Something else than an MCP server answers."""
    return SinkError(f"{address}: {what}: no MCP server answers there", hint=hint)


def silent(address: ServerAddress, seconds: float) -> SinkError:
    return SinkError(f"{address}: no answer for {seconds:g} s", hint=SLOW, transient=True)


def refusal(
    address: ServerAddress, status: int, headers: Mapping[str, str], detail: str, *, in_session: bool
) -> SinkError:
    """Return the error for an HTTP status other than success. `said` is the server's message, if any."""
    quote = address.quote(detail)
    text = f"{address}: status {status}" + (f": {quote}" if quote else "")
    if status in (401, 403):
        return SinkError(text, hint=TOKEN)
    if 300 <= status < 400:  # noqa: PLR2004 - all redirects
        return _redirect(address, status, headers)
    if (status == 404 and in_session) or (status == _MALFORMED and "session" in detail.lower()):  # noqa: PLR2004
        return SessionGone(address)
    if status in _UNKNOWN:
        return not_mcp(address, f"status {status}")
    if status == _TOO_LARGE:
        return Rejected(address, "larger than the server takes")
    if status in (_MALFORMED, _UNPROCESSABLE):
        return Rejected(address, quote or f"status {status}")
    if status in _TRANSIENT or (status >= _SERVER_FAULT and status != _NOT_IMPLEMENTED):
        return SinkError(text, hint="see to the server", transient=True, retry_after=retry_after(headers))
    return SinkError(text, hint=ADDRESS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the server asks to be left alone: at most a day; None where it does not say."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    until = _date(text)
    if until is None:
        return None
    # By the server's own clock where it tells the time: ours may be another.
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # OverflowError: a year or an offset that no date can hold
        return None


def _redirect(address: ServerAddress, status: int, headers: Mapping[str, str]) -> SinkError:
    """A redirect is never followed: the token, and the memories, are for the address in the settings alone."""
    try:
        target = urlsplit(urljoin(address.endpoint, headers.get("location", "")))
        host, path = target.hostname or "nowhere", target.path
    except ValueError:
        return not_mcp(address, f"status {status}, a redirect to nowhere")
    if f"{target.scheme}://{target.netloc}" == address.origin and target.geturl() != address.endpoint:
        path = address.quote(path)
        return SinkError(
            f"{address}: status {status}, a redirect to {path}",
            hint=f"set akosha_http_endpoint to {address.origin}{path}",
        )
    return SinkError(
        f"{address}: status {status}, a redirect to {target.scheme}://{address.quote(host)}, which was not followed",
        hint="sign in where this network wants that (a captive portal), "
        "or set akosha_http_endpoint to the server's own address, if you trust it",
    )


_ITEM = re.compile(
    r"validation error|should be a valid|embedding|isoformat|codec|conversion error|missing required|\binvalid\b"
    r"|unexpected keyword|missing_argument|must be |too (long|large|big)|out of range",
    re.IGNORECASE,
)
_PASSING = re.compile(
    r"\block(ed)?\b|time[d -]*out|connect|temporar|unavailable|try again|busy|\bdisk\b|no space|out of memory"
    r"|read-only|not initialized|shutting down|rate limit|too many|transaction|io error|internal|fatal|invalidated",
    re.IGNORECASE,
)
_UNKNOWN_TOOL = re.compile(r"unknown tool\b|no such tool\b|tool .{1,60} not found", re.IGNORECASE)
_DUPLICATE = re.compile(r"duplicate key|primary key constraint", re.IGNORECASE)


def is_items_fault(why: str) -> bool:
    """Whether the memory itself is what the server does not take."""
    return bool(_ITEM.search(why))


def is_passing(why: str) -> bool:
    """Whether it is the server's own trouble, which may pass."""
    return not is_items_fault(why) and bool(_PASSING.search(why))


def is_known(why: str, memory_id: str) -> bool:
    """Whether it is there already, under our own id: an id says what is stored, so this is the very same."""
    return bool(_DUPLICATE.search(why)) and memory_id.lower() in why.lower()


def is_unknown_tool(why: str) -> bool:
    return bool(_UNKNOWN_TOOL.match(why))
