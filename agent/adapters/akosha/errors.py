"""Translates errors of an Akosha server into SinkErrors: where, what, the hint, and whether it is transient."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

from agent.adapters.akosha.server_address import ServerAddress
from agent.domain.errors import SinkError

ADDRESS = "is akosha_http_endpoint the address of an Akosha server? It usually ends in /mcp"
PORTAL = f"does this network require you to sign in first (a captive portal)? Otherwise, {ADDRESS}"
TOKEN = (
    "set akosha_http_token to a token that the server accepts: "  # noqa: S105 - a setting
    "akosha-agent config set http_token - stores it, and the next attempt reads it; one from elsewhere is read after "
    "systemctl --user reload akosha-agent, or kill -HUP"
)
VERSION = "update Akosha or akosha-agent"
UNEXPECTED = "is akosha_http_endpoint the address of an Akosha server? The log has the traceback"
SERVER = "check the Akosha server and its log"
SLOW = "check the Akosha server, or raise akosha_upload_timeout_seconds"

MAX_RETRY_AFTER = 24 * 3600.0

_TOO_LARGE, _MALFORMED, _UNPROCESSABLE = 413, 400, 422
_UNKNOWN = (404, 405, 410)
_TRANSIENT = frozenset({408, 421, 423, 425, 429})
_SERVER_FAULT, _NOT_IMPLEMENTED = 500, 501

_MEMORY_FAULT = re.compile(
    r"validation error|should be a valid|embedding|isoformat|codec|conversion error|missing required|\binvalid\b"
    r"|unexpected keyword|missing_argument|must be |too (long|large|big)|out of range",
    re.IGNORECASE,
)
_TRANSIENT_ERROR = re.compile(
    r"\block(ed)?\b|time[d -]*out|connect|temporar|unavailable|try again|busy|\bdisk\b|no space|out of memory"
    r"|read-only|not initialized|shutting down|rate limit|too many|transaction|io error|internal|fatal|invalidated",
    re.IGNORECASE,
)
_UNKNOWN_TOOL = re.compile(r"unknown tool\b|no such tool\b|tool .{1,60} not found", re.IGNORECASE)
_DUPLICATE = re.compile(r"duplicate key|primary key constraint", re.IGNORECASE)


class TlsFailed(SinkError):  # noqa: N818 - a state, not a fault of the code
    """TLS failed on either side. Certificates may be replaced; a new client reads them again."""


class TokenRefused(SinkError):  # noqa: N818
    """The server refused the token, or there is none."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint=TOKEN)
        self.credentials_refused = True


class SessionGone(SinkError):  # noqa: N818 - a state, not a fault of the code
    """The server does not know the session: it was restarted, or dropped the session."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__(
            f"{address}: the server does not know the session that it has just started",
            hint="do several servers share this address? All requests of a session must reach the same one",
            transient=True,
        )


class Rejected(SinkError):  # noqa: N818
    """The server did not accept a request, because its content is not valid. `reason` is the server's message."""

    def __init__(self, address: ServerAddress, reason: str) -> None:
        super().__init__(f"{address}: the server refuses the request: {reason}", hint=VERSION)
        self.reason = reason


class ToolGone(SinkError):  # noqa: N818
    """The server no longer offers a tool that it offered when the session started."""

    def __init__(self, address: ServerAddress, tool: str) -> None:
        super().__init__(
            f"{address}: the server no longer offers the tool {tool}", hint="was Akosha replaced?", transient=True
        )


def server_error(address: ServerAddress, reason: str) -> SinkError:
    """Return the error for a fault of the server, with the server's reason."""
    return SinkError(f"{address}: the server reports an error: {reason}", hint=SERVER, transient=True)


def invalid_response(address: ServerAddress, what: str) -> SinkError:
    """Return the error for an invalid or incomplete response. The request may have been carried out."""
    return SinkError(f"{address}: {what}", hint="does a proxy on the way to the server change it?", transient=True)


def compressed(address: ServerAddress, encoding: str) -> SinkError:
    """Return the error for a compressed response. Only `identity` is accepted, so that the size limit holds."""
    return invalid_response(
        address, f"the response is compressed ({address.quote(encoding)}), which the agent did not request"
    )


def not_mcp(address: ServerAddress, what: str, *, hint: str = ADDRESS) -> SinkError:
    """Return the error for a server that is not an MCP server."""
    return SinkError(f"{address}: {what}: this is not an MCP server", hint=hint)


def no_answer(address: ServerAddress, seconds: float) -> SinkError:
    """Return the error for a server that showed no activity for so many seconds."""
    return SinkError(f"{address}: no answer for {seconds:g} s", hint=SLOW, transient=True)


def refusal(
    address: ServerAddress, status: int, headers: Mapping[str, str], detail: str, *, in_session: bool
) -> SinkError:
    """Return the error for an HTTP status other than success. `detail` is the server's message, if any."""
    quote = address.quote(detail)
    answered = f"status {status}" + (f": {quote}" if quote else "")
    text = f"{address}: {answered}"
    if status in (401, 403):
        problem = "the server does not accept the token" if address.token else "the server requires a token"
        return TokenRefused(f"{address}: {problem}: {answered}")
    if 300 <= status < 400:  # noqa: PLR2004 - all redirects
        return _redirect(address, status, headers)
    if (status == 404 and in_session) or (status == _MALFORMED and "session" in detail.lower()):  # noqa: PLR2004
        return SessionGone(address)
    if status in _UNKNOWN:
        return not_mcp(address, f"status {status}")
    if status == _TOO_LARGE:
        return Rejected(address, "larger than the server accepts")
    if status in (_MALFORMED, _UNPROCESSABLE):
        return Rejected(address, quote or f"status {status}")
    if status in _TRANSIENT or (status >= _SERVER_FAULT and status != _NOT_IMPLEMENTED):
        return SinkError(text, hint=SERVER, transient=True, retry_after=retry_after(headers))
    return SinkError(text, hint=ADDRESS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of the Retry-After header, at most a day; None without a valid one."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    until = _date(text)
    if until is None:
        return None
    # Prefer the server's clock: this machine's may differ.
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # OverflowError: a year or an offset out of range
        return None


def _redirect(address: ServerAddress, status: int, headers: Mapping[str, str]) -> SinkError:
    """Return the error for a redirect. The agent sends token and memories only to the address in the settings."""
    try:
        target = urlsplit(urljoin(address.endpoint, headers.get("location", "")))
        host, path = target.hostname or "nowhere", target.path
    except ValueError:
        return not_mcp(address, f"status {status}, a redirect to nowhere")
    if f"{target.scheme}://{target.netloc}" == address.origin and target.geturl() != address.endpoint:
        path = address.quote(path).replace(" ", "%20")  # in the hint, it cannot look like a command
        return SinkError(
            f"{address}: status {status}, a redirect to {path}",
            hint=f"set akosha_http_endpoint to {address.origin}{path}",
        )
    return SinkError(
        f"{address}: status {status}, a redirect to {target.scheme}://{address.quote(host)}, which was not followed",
        hint="sign in if this network requires it (a captive portal), "
        "or set akosha_http_endpoint to the server's own address if you trust it",
    )


def is_memory_fault(reason: str) -> bool:
    """Return whether the server refuses the memory itself."""
    return bool(_MEMORY_FAULT.search(reason))


def is_transient(reason: str) -> bool:
    """Return whether the reason is a transient fault of the server."""
    return not is_memory_fault(reason) and bool(_TRANSIENT_ERROR.search(reason))


def is_duplicate(reason: str, memory_id: str) -> bool:
    """Return whether the memory is already stored. Its ID is derived from its content, so it is the same memory."""
    return bool(_DUPLICATE.search(reason)) and memory_id.lower() in reason.lower()


def is_unknown_tool(reason: str) -> bool:
    return bool(_UNKNOWN_TOOL.match(reason))
