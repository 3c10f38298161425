"""HTTP to the one address of the settings, on httpx2: no redirects, and the token goes nowhere else.

A response has a JSON-RPC message in it, as JSON or as one of the events of a stream. Importing this loads httpx2
(0.15 s), and making a client a TLS context (50 ms): both are done on a thread.
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


async def answer(response: httpx2.Response, address: ServerAddress, wanted: int, alive: Callable[[], None]) -> Message:
    """Return the message that answers the request `wanted`. `alive` is called for each event before it.

    Raises SinkError for anything else: another's answer, half an answer, no answer, a page for people.
    """
    _check_encoding(response, address)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _checked(parsed(await whole(response, address, MAX_BYTES), address), address, wanted)
    if kind != "text/event-stream":
        hint = errors.PORTAL if kind == "text/html" else errors.ADDRESS
        raise errors.not_mcp(address, f"an answer of type {address.quote(kind) or 'unknown'}", hint=hint)
    return await _among_events(httpx2.EventSource(response, max_event_size=MAX_BYTES), address, wanted, alive)


async def _among_events(
    source: httpx2.EventSource, address: ServerAddress, wanted: int, alive: Callable[[], None]
) -> Message:
    size = 0
    # It is a generator, though its type does not say so; closed at once, it leaves nothing to the loop's own hooks.
    async with contextlib.aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as events:
        async for event in events:
            alive()
            size += len(event.data)
            if size > MAX_BYTES:
                raise _too_large(address)
            if event.event != "message" or not event.data:
                continue
            message = parsed(event.data.encode(), address)
            # What has a method is a notification, or a request of the server's own: neither is for us.
            if "method" not in message:
                found = _checked(message, address, wanted)
                await _to_the_end(events)
                return found
    raise errors.garbled(address, "the answer broke off")


async def _to_the_end(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """Wait a moment for the end of the events, which is due: only then can the connection be used again."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(ENDING_SECONDS):
            async for _ in events:
                pass


async def whole(response: httpx2.Response, address: ServerAddress, limit: int) -> bytes:
    """Return the body, if it is not compressed and no larger than `limit` bytes. Raises SinkError."""
    _check_encoding(response, address)
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            raise _too_large(address)
    return bytes(body)


def parsed(data: bytes, address: ServerAddress) -> Message:
    """Return a JSON object. Raises SinkError."""
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.garbled(address, "the answer is not JSON") from error
    if not isinstance(message, dict):
        raise errors.garbled(address, "the answer is not a JSON object")
    return message


def _checked(message: Message, address: ServerAddress, wanted: int) -> Message:
    # A server that could not read the request answers without its id.
    is_error = isinstance(message.get("error"), dict)
    given = message.get("id")
    if (isinstance(given, bool) or given != wanted) and not (is_error and given in (None, "server-error")):
        raise errors.garbled(address, "the answer is to another request")
    if not is_error and not isinstance(message.get("result"), dict):
        raise errors.garbled(address, "the answer has neither a result nor an error")
    return message


def _check_encoding(response: httpx2.Response, address: ServerAddress) -> None:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise errors.compressed(address, encoding)


def _too_large(address: ServerAddress) -> SinkError:
    return errors.garbled(address, f"the answer is larger than {MAX_BYTES // 2**20} MiB")


CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
PIECE = 64 * 1024
_IDLE_SECONDS = 3.0
"""Connections are kept for less than servers keep them (uvicorn: 5 s), so that a request rarely meets a closed one."""
_LOGGERS = ("httpx2", "httpcore2")
_PROXY_AUTHENTICATION = "407"
_REFUSAL_BYTES = 16 * 1024
_LONGEST_VERSION = 100


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the session's id if there was one in the headers, and the message that was waited for."""

    session_id: str
    message: Message


class Http:
    """Requests to an address.

    `count` is called with the size of each piece of a body that is sent. Every failure is a SinkError.
    """

    def __init__(self, address: ServerAddress, count: Callable[[int], None]) -> None:
        """Make the client; blocks for a while. Raises SinkError for an environment that it cannot be made in."""
        self._address = address
        self._count = count
        if not (address.token.isascii() and address.token.isprintable() and " " not in address.token):
            # Said here, for what the library says of such a header repeats it.
            raise SinkError(f"{address}: the token has characters that cannot stand in a header", hint=errors.TOKEN)
        for name in _LOGGERS:
            # At INFO it tells each request; what is worth telling, the agent tells.
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
            # A context without an authority trusts nobody; where nothing is encrypted nobody is asked.
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
                    f"{address}: the certificates that SSL_CERT_FILE names cannot be read: {address.quote(file)}"
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
        self, body: Sequence[bytes], headers: Mapping[str, str], *, wanted: int | None, silence_seconds: float
    ) -> Reply:
        """Send a message and return the answer to the request `wanted` (None: there is none, `message` is empty).

        `silence`: so many seconds may pass in which neither a piece of the body goes out nor an event comes in.
        """
        loop = asyncio.get_running_loop()
        try:
            async with self._in_use(), asyncio.timeout(silence_seconds) as patience:

                def alive() -> None:
                    if not patience.expired():
                        patience.reschedule(loop.time() + silence_seconds)

                length = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, body)))}
                request = self._client.build_request("POST", self._address.endpoint, headers={**headers, **length})
                request.stream = _Body(body, self._count, alive)
                return await self._exchange(request, wanted, alive, in_session="Mcp-Session-Id" in headers)
        except TimeoutError as error:
            raise errors.silent(self._address, silence_seconds) from error

    async def delete(self, headers: Mapping[str, str]) -> None:
        """Tell the server that a session has ended. What it says to that does not matter."""
        try:
            async with self._in_use():
                request = self._client.build_request("DELETE", self._address.endpoint, headers=dict(headers))
                await (await self._client.send(request, stream=True)).aclose()
        except httpx2.HTTPError as error:
            raise _translated(error, self._address) from error

    async def health(self) -> str | None:
        """Return the version that the origin's /health tells, "" where it tells none; None where it is not healthy.

        Healthy is what answers 200 with JSON; and what wants to know who asks, so that the handshake can tell the cure.
        Raises SinkError where there is no answer.
        """
        async with self._in_use():
            return await self._health()

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of the origin's /health, "" where there is none. Raises SinkError."""
        try:
            async with self._in_use(), asyncio.timeout(seconds):
                request = self._client.build_request("GET", f"{self._address.origin}/health")
                response = await self._client.send(request, stream=True)
                await response.aclose()
        except TimeoutError as error:
            raise errors.silent(self._address, seconds) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error
        return str(response.headers.get("date", ""))

    async def retire(self) -> None:
        """Close the client once no call uses it any more; later calls raise a transient SinkError. Idempotent."""
        self._retired = True
        await self._close_if_done()

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        if self._retired:
            raise SinkError(f"{self._address}: the connection was replaced meanwhile", hint="try again", transient=True)
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
                body = await whole(response, self._address, _REFUSAL_BYTES)
                try:
                    version = parsed(body, self._address).get("version")
                except SinkError:
                    return None
                return version[:_LONGEST_VERSION] if isinstance(version, str) else ""
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error

    async def drop_idle_connections(self) -> None:
        """Close the connections that nothing uses now; one that does not close in time is left to the library."""
        transports = (self._client._transport, *self._client._mounts.values())  # noqa: SLF001 - it can only close all
        pools = (getattr(transport, "_pool", None) for transport in transports)
        kept = [connection for pool in pools if pool is not None for connection in pool.connections]
        with contextlib.suppress(TimeoutError, httpx2.HTTPError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for connection in kept:
                    if connection.is_idle():
                        await connection.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _exchange(
        self, request: httpx2.Request, wanted: int | None, alive: Callable[[], None], *, in_session: bool
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
                if wanted is None:
                    # Read to its end, though there is nothing in it: only then can the connection be used again.
                    await whole(response, self._address, _REFUSAL_BYTES)
                    return Reply(session_id, {})
                return Reply(session_id, await answer(response, self._address, wanted, alive))
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _translated(error, self._address) from error

    async def _refusal_detail(self, response: httpx2.Response) -> str:
        """Return the message of a refusal, if it has one that is meant for us."""
        try:
            detail = parsed(await whole(response, self._address, _REFUSAL_BYTES), self._address)
        except SinkError:
            return ""
        error = detail.get("error")
        return as_text(error.get("message", "")) if isinstance(error, dict) else ""


class _Body(httpx2.AsyncByteStream):
    """A request's body in pieces, each of them a sign of life. Not a generator: nothing is left to be closed."""

    def __init__(self, parts: Sequence[bytes], count: Callable[[int], None], alive: Callable[[], None]) -> None:
        self._pieces = (memoryview(part)[at : at + PIECE] for part in parts for at in range(0, len(part), PIECE))
        self._count, self._alive = count, alive

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = bytes(next(self._pieces, b""))
        if not piece:
            raise StopAsyncIteration
        self._alive()
        self._count(len(piece))
        return piece


def _translated(error: Exception, address: ServerAddress) -> SinkError:
    """Return the SinkError for what httpx2 raised."""
    if isinstance(error, httpx2.SSEError):
        return errors.garbled(address, "the answer is larger than 16 MiB")
    reason = _reason(error)
    if "CERTIFICATE" in reason.upper():
        return errors.Untrusted(
            f"{address}: the certificate cannot be trusted",
            hint="set SSL_CERT_FILE to the file of the authority that signed it, or correct akosha_http_endpoint",
        )
    if _is_tls(error) and "WRONG_VERSION_NUMBER" not in reason.upper() and "RECORD LAYER" not in reason.upper():
        return errors.Untrusted(
            f"{address}: TLS failed: {address.quote(reason)}", hint="see to the server's certificate", transient=True
        )
    if "WRONG_VERSION_NUMBER" in reason.upper() or "RECORD LAYER" in reason.upper():
        return SinkError(f"{address}: TLS is not spoken there", hint="check akosha_http_endpoint")
    proxy = address.proxy
    if proxy is not None and isinstance(error, httpx2.ProxyError) and _PROXY_AUTHENTICATION in str(error):
        return SinkError(
            f"{address}: the proxy {proxy} wants a user and a password: status {_PROXY_AUTHENTICATION}",
            hint=f"write them into {proxy.variable}: http://USER:PASSWORD@{proxy}",
        )
    if isinstance(error, httpx2.ProxyError):
        hint = f"check {proxy.variable if proxy else 'HTTPS_PROXY, ALL_PROXY'} and NO_PROXY"
        return SinkError(f"{address}: the proxy{f' {proxy}' if proxy else ''} refuses", hint=hint, transient=True)
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
    """Say what broke: the system's words where there are any, else the library's kind of error."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLError | socket.gaierror) and inner.strerror:
            return inner.strerror
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
        inner = inner.__cause__ or inner.__context__
    return {"RemoteProtocolError": "the connection was closed before the answer was whole"}.get(
        type(error).__name__, str(error) or type(error).__name__
    )
