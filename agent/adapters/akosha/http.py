"""HTTP to the configured address, with httpx2. Redirects are not followed, so the token is sent to no other host.

A response contains a JSON-RPC message, as JSON or as an event of a stream. Importing this module loads httpx2 (0.15 s),
and creating a client loads a TLS context (50 ms). Callers do both in a thread.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import httpx2
import orjson

from agent import __version__
from agent.adapters.akosha import errors
from agent.adapters.akosha.server_address import ServerAddress, as_text
from agent.adapters.akosha.tools import Message
from agent.domain.errors import SinkError

MAX_BYTES = 16 * 1024 * 1024
ENDING_SECONDS = 0.5

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
PIECE = 64 * 1024
_IDLE_SECONDS = 3.0
"""Shorter than servers keep idle connections (uvicorn: 5 s), so that a request rarely uses a closed one."""
_LOGGERS = ("httpx2", "httpcore2")
_PROXY_AUTHENTICATION = "407"
_REFUSAL_BYTES = 16 * 1024
_LONGEST_VERSION = 100


async def read_message(
    response: httpx2.Response, address: ServerAddress, request_id: int, on_activity: Callable[[], None]
) -> Message:
    """Return the response message to the request `request_id`. `on_activity` is called for each event of a stream.

    Raises SinkError if the response is missing, incomplete, to another request, or not a JSON-RPC message.
    """
    _check_encoding(response, address)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _check_message(parse_object(await read_body(response, address, MAX_BYTES), address), address, request_id)
    if kind != "text/event-stream":
        hint = errors.PORTAL if kind == "text/html" else errors.ADDRESS
        raise errors.not_mcp(address, f"a response of type {address.quote(kind) or 'unknown'}", hint=hint)
    return await _read_events(httpx2.EventSource(response, max_event_size=MAX_BYTES), address, request_id, on_activity)


async def _read_events(
    source: httpx2.EventSource, address: ServerAddress, request_id: int, on_activity: Callable[[], None]
) -> Message:
    size = 0
    # A generator, although its type does not say so. It is closed here, not later by the event loop's hooks.
    async with contextlib.aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as events:
        async for event in events:
            on_activity()
            size += len(event.data)
            if size > MAX_BYTES:
                raise _too_large(address)
            if event.event != "message" or not event.data:
                continue
            message = parse_object(event.data.encode(), address)
            # A message with a method is a notification or a request of the server.
            if "method" not in message:
                checked = _check_message(message, address, request_id)
                await _drain(events)
                return checked
    raise errors.invalid_response(address, "the response is incomplete")


async def _drain(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """Wait briefly for the end of the events: only then can the connection be used again."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(ENDING_SECONDS):
            async for _ in events:
                pass


async def read_body(response: httpx2.Response, address: ServerAddress, limit: int) -> bytes:
    """Return the body. Raises SinkError if it is compressed or larger than `limit` bytes."""
    _check_encoding(response, address)
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            raise _too_large(address)
    return bytes(body)


def parse_object(data: bytes, address: ServerAddress) -> Message:
    """Return a JSON object. Raises SinkError."""
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_response(address, "the response is not JSON") from error
    if not isinstance(message, dict):
        raise errors.invalid_response(address, "the response is not a JSON object")
    return message


def _check_message(message: Message, address: ServerAddress, request_id: int) -> Message:
    # A server that could not read the request answers without its ID.
    is_error = isinstance(message.get("error"), dict)
    given = message.get("id")
    if (isinstance(given, bool) or given != request_id) and not (is_error and given in (None, "server-error")):
        raise errors.invalid_response(address, "the response is to another request")
    if not is_error and not isinstance(message.get("result"), dict):
        raise errors.invalid_response(address, "the response has neither a result nor an error")
    return message


def _check_encoding(response: httpx2.Response, address: ServerAddress) -> None:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise errors.compressed(address, encoding)


def _too_large(address: ServerAddress) -> SinkError:
    return errors.invalid_response(address, f"the response is larger than {MAX_BYTES // 2**20} MiB")


@dataclass(frozen=True, slots=True)
class Reply:
    """The session ID of the response's headers ("" if there is none), and the response message."""

    session_id: str
    message: Message


class McpHttpClient:
    """Requests to an address.

    `count` is called with the size of each piece of a body that is sent. Every failure is a SinkError.
    """

    def __init__(self, address: ServerAddress, count: Callable[[int], None]) -> None:
        """Create the client. Blocks. Raises SinkError if the environment (proxies, certificates) is not valid."""
        self._address = address
        self._count = count
        if not (address.token.isascii() and address.token.isprintable() and " " not in address.token):
            # Checked here, because the library's error message would contain the token.
            raise SinkError(f"{address}: the token has characters that are not valid in a header", hint=errors.TOKEN)
        for name in _LOGGERS:  # both log each request at INFO
            if (logger := logging.getLogger(name)).level == logging.NOTSET:
                logger.setLevel(logging.WARNING)
        headers = {
            "User-Agent": f"akosha-agent/{__version__}",
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
        }
        if address.token:
            headers["Authorization"] = f"Bearer {address.token}"
        proxied = not address.is_local
        try:
            # Without encryption, an empty context avoids loading the certificate authorities.
            needed = proxied or address.is_encrypted
            context = httpx2.create_ssl_context() if needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._client = httpx2.AsyncClient(
                headers=headers,
                verify=context,
                trust_env=proxied,
                follow_redirects=False,
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx2.Limits(keepalive_expiry=_IDLE_SECONDS),
            )
        except (OSError, ValueError, httpx2.InvalidURL, ImportError) as error:
            if isinstance(error, OSError) and (file := os.environ.get("SSL_CERT_FILE")):
                raise SinkError(
                    f"{address}: the certificate file of SSL_CERT_FILE cannot be read: {address.quote(file)}"
                    f" ({address.quote(error.strerror or type(error).__name__)})",
                    hint="correct SSL_CERT_FILE, or the file",
                ) from error
            raise SinkError(
                f"{address}: the environment does not allow a connection ({type(error).__name__})",
                hint="check HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR",
            ) from error
        self._calls = 0
        self._retired = False

    async def post(
        self, body: Sequence[bytes], headers: Mapping[str, str], *, request_id: int | None, silence_seconds: float
    ) -> Reply:
        """Send a message and return the reply to `request_id`. With None, expect no reply and return an empty message.

        `silence_seconds` is the maximum time in which no piece of the body is sent and no event arrives.
        """
        loop = asyncio.get_running_loop()
        try:
            async with self._in_use(), asyncio.timeout(silence_seconds) as limit:

                def on_activity() -> None:
                    if not limit.expired():
                        limit.reschedule(loop.time() + silence_seconds)

                length = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, body)))}
                request = self._client.build_request("POST", self._address.endpoint, headers={**headers, **length})
                request.stream = _Body(body, self._count, on_activity)
                return await self._exchange(request, request_id, on_activity, in_session="Mcp-Session-Id" in headers)
        except TimeoutError as error:
            raise errors.no_answer(self._address, silence_seconds) from error

    async def delete(self, headers: Mapping[str, str]) -> None:
        """End a session. The server's response is ignored. Raises SinkError."""
        try:
            async with self._in_use():
                request = self._client.build_request("DELETE", self._address.endpoint, headers=dict(headers))
                await (await self._client.send(request, stream=True)).aclose()
        except httpx2.HTTPError as error:
            raise _translated(error, self._address) from error

    async def health(self) -> str | None:
        """Return the version in the response of the origin's /health, "" if it has none; None if it is not healthy.

        Healthy is a 200 with JSON. A 401 or 403 counts as healthy, too: the handshake then reports the hint for it.
        Raises SinkError if there is no response.
        """
        async with self._in_use():
            return await self._health()

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of the origin's /health, "" if it has none. Raises SinkError."""
        try:
            async with self._in_use(), asyncio.timeout(seconds):
                request = self._client.build_request("GET", f"{self._address.origin}/health")
                response = await self._client.send(request, stream=True)
                await response.aclose()
        except TimeoutError as error:
            raise errors.no_answer(self._address, seconds) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error
        return str(response.headers.get("date", ""))

    async def retire(self) -> None:
        """Close the client after its last call. Later calls raise a transient SinkError. Idempotent."""
        self._retired = True
        await self._close_if_done()

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        if self._retired:
            raise SinkError(f"{self._address}: the HTTP client was replaced", hint="try again", transient=True)
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._retired and not self._calls:
            await self.aclose()

    async def _health(self) -> str | None:
        request = self._client.build_request("GET", f"{self._address.origin}/health")
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
                    return ""
                if response.status_code != httpx2.codes.OK:
                    return None
                body = await read_body(response, self._address, _REFUSAL_BYTES)
                try:
                    version = parse_object(body, self._address).get("version")
                except SinkError:
                    return None
                return version[:_LONGEST_VERSION] if isinstance(version, str) else ""
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error

    async def drop_idle_connections(self) -> None:
        """Close the idle connections. The library closes those that do not close in time."""
        transports = (self._client._transport, *self._client._mounts.values())  # noqa: SLF001 - aclose() closes all
        pools = (getattr(transport, "_pool", None) for transport in transports)
        connections = [connection for pool in pools if pool is not None for connection in pool.connections]
        with contextlib.suppress(TimeoutError, httpx2.HTTPError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for connection in connections:
                    if connection.is_idle():
                        await connection.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _exchange(
        self, request: httpx2.Request, request_id: int | None, on_activity: Callable[[], None], *, in_session: bool
    ) -> Reply:
        try:
            response = await self._client.send(request, stream=True)
            try:
                if not response.is_success:
                    detail = await self._refusal_detail(response)
                    raise errors.refusal(
                        self._address, response.status_code, response.headers, detail, in_session=in_session
                    )
                session_id = response.headers.get("mcp-session-id", "")
                if request_id is None:
                    # The empty body must be read, so that the connection can be used again.
                    await read_body(response, self._address, _REFUSAL_BYTES)
                    return Reply(session_id, {})
                return Reply(session_id, await read_message(response, self._address, request_id, on_activity))
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error

    async def _refusal_detail(self, response: httpx2.Response) -> str:
        """Return the message of a JSON-RPC error in a refusal, "" if there is none."""
        try:
            detail = parse_object(await read_body(response, self._address, _REFUSAL_BYTES), self._address)
        except SinkError:
            return ""
        error = detail.get("error")
        return as_text(error.get("message", "")) if isinstance(error, dict) else ""


class _Body(httpx2.AsyncByteStream):
    """A request's body in pieces; sending a piece counts as activity. Not a generator, so it needs no closing."""

    def __init__(self, parts: Sequence[bytes], count: Callable[[int], None], on_activity: Callable[[], None]) -> None:
        self._pieces = (memoryview(part)[at : at + PIECE] for part in parts for at in range(0, len(part), PIECE))
        self._count, self._on_activity = count, on_activity

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = bytes(next(self._pieces, b""))
        if not piece:
            raise StopAsyncIteration
        self._on_activity()
        self._count(len(piece))
        return piece


def _translated(error: Exception, address: ServerAddress) -> SinkError:
    """Return the SinkError for an exception of httpx2."""
    if isinstance(error, httpx2.SSEError):
        return _too_large(address)
    reason = _reason(error)
    if "CERTIFICATE" in reason.upper():
        return errors.TlsFailed(
            f"{address}: the certificate is not trusted",
            hint="set SSL_CERT_FILE to the certificate file of the CA that signed it, or correct akosha_http_endpoint",
        )
    if "WRONG_VERSION_NUMBER" in reason.upper() or "RECORD LAYER" in reason.upper():
        return SinkError(f"{address}: the server does not use TLS", hint="check akosha_http_endpoint")
    if _is_tls(error):
        return errors.TlsFailed(
            f"{address}: TLS failed: {address.quote(reason)}", hint="check the server's certificate", transient=True
        )
    proxy = address.proxy
    if proxy is not None and isinstance(error, httpx2.ProxyError) and _PROXY_AUTHENTICATION in str(error):
        return SinkError(
            f"{address}: the proxy {proxy} requires a user and a password: status {_PROXY_AUTHENTICATION}",
            hint=f"add them to {proxy.variable}: http://USER:PASSWORD@{proxy}",
        )
    if isinstance(error, httpx2.ProxyError):
        hint = f"check {proxy.variable if proxy else 'HTTPS_PROXY, ALL_PROXY'} and NO_PROXY"
        name = f"the proxy {proxy}" if proxy else "the proxy"
        return SinkError(f"{address}: {name} refuses the connection", hint=hint, transient=True)
    if proxy is not None and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return SinkError(
            f"{address}: no connection to the proxy {proxy}: {address.quote(reason)}",
            hint=f"check {proxy.variable} and NO_PROXY",
            transient=True,
        )
    if isinstance(error, httpx2.ConnectTimeout):
        reason = f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL):
        return SinkError(f"{address}: not a usable address ({type(error).__name__})", hint=errors.ADDRESS)
    return SinkError(f"{address}: {address.quote(reason)}", hint="is the Akosha server running there?", transient=True)


def _is_tls(error: BaseException) -> bool:
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ssl.SSLError):
        inner = inner.__cause__ or inner.__context__
    return inner is not None


def _reason(error: BaseException) -> str:
    """Return the reason of an error: the system's error message if there is one, else the library's."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLError | socket.gaierror) and inner.strerror:
            return inner.strerror
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
        inner = inner.__cause__ or inner.__context__
    return {"RemoteProtocolError": "the connection was closed before the response was complete"}.get(
        type(error).__name__, str(error) or type(error).__name__
    )
