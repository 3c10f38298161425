"""HTTP client of the control socket, on httpx2. Every failure is raised as AgentUnavailable.

Importing this module imports httpx2, which blocks briefly.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Self, cast

import httpx2
import structlog
from pydantic import TypeAdapter, ValidationError

from agent.adapters.unix_http import http_client, socket_address
from agent.domain.errors import AgentUnavailable, WireError
from agent.domain.events import SyncAsked, SyncProgress
from agent.entrypoints.status_document import StatusDocument
from agent.ports import Codec, HistoryEntry

RESPONSE_SECONDS = 3.0
"""Time limit from the connection to the last byte of a response, or to the headers of an event stream."""

SILENCE_SECONDS = 40.0
"""Time limit between two messages of an event stream; the agent sends a heartbeat every 15 s."""

MAX_RESPONSE_BYTES = 16 * 1024 * 1024
MAX_EVENT_BYTES = 2 * MAX_RESPONSE_BYTES

_log = structlog.get_logger()


class ControlClient:
    """Client of the agent that listens at a socket path. Use it once with `async with`, which does not connect yet."""

    def __init__(self, path: Path, codec: Codec) -> None:
        self._path, self._codec = path, codec
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises AgentUnavailable if the socket cannot be addressed."""
        with _translated_errors():
            address = self._open.enter_context(socket_address(self._path))
        self._client = await self._open.enter_async_context(http_client(address))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def status(self) -> StatusDocument:
        """Return the agent's status. Fields of a newer agent are ignored. Raises AgentUnavailable."""
        body = await self._response(self._client.build_request("GET", "/v1/status"), httpx2.codes.OK)
        try:
            return _status_adapter().validate_json(body)
        except ValidationError as error:
            raise AgentUnavailable(f"the agent's status cannot be decoded: {error.error_count()} errors") from error

    async def ask(self, ask: SyncAsked) -> None:
        """Request a sync; its result follows in the events and in the ledger. Raises AgentUnavailable.

        After AgentUnavailable, the agent may still have received the request. It is sent as an event instead of
        `POST /v1/sync`, so that an agent of another system refuses it.
        """
        headers = {"Content-Type": "application/cloudevents+json"}
        body = self._codec.encode(ask)
        request = self._client.build_request("POST", "/v1/events", content=body, headers=headers)
        await self._response(request, httpx2.codes.ACCEPTED)

    @asynccontextmanager
    async def events(
        self, *, after: int | None = None
    ) -> AsyncIterator[AsyncGenerator[HistoryEntry | SyncProgress, None]]:
        """Yield the history after a position (None: new entries only) as it grows, and progress events.

        No event that happens inside the block is missed. The stream ends when the agent ends. Raises AgentUnavailable,
        also during iteration. Events of unknown types are skipped.
        """
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        request = self._client.build_request(
            "GET", "/v1/events", headers=headers, timeout=httpx2.Timeout(None, read=SILENCE_SECONDS)
        )
        with _translated_errors():
            async with asyncio.timeout(RESPONSE_SECONDS):
                response = await self._client.send(request, stream=True)
        try:
            _check_status(response, httpx2.codes.OK)
            async with aclosing(self._decoded(response)) as events:
                yield events
        finally:
            await response.aclose()

    async def _decoded(self, response: httpx2.Response) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        source = httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES)
        with _translated_errors():
            # It is an async generator, although its annotation is an iterator.
            async with aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as messages:
                async for message in messages:
                    if message.data and (item := self._decode(message)) is not None:
                        yield item

    def _decode(self, message: httpx2.ServerSentEvent) -> HistoryEntry | SyncProgress | None:
        try:
            event = self._codec.decode(message.data.encode())
            if isinstance(event, SyncProgress):
                return event
            return HistoryEntry(int(message.id), event)
        except (WireError, ValueError) as error:
            _log.debug("event_not_understood", type=message.event[:80], error=str(error))
            return None

    async def _response(self, request: httpx2.Request, expected_status: int) -> bytes:
        with _translated_errors():
            async with asyncio.timeout(RESPONSE_SECONDS):
                response = await self._client.send(request, stream=True)
                try:
                    body = bytearray()
                    async for piece in response.aiter_bytes():
                        body += piece
                        if len(body) > MAX_RESPONSE_BYTES:
                            raise AgentUnavailable(f"the agent's response to {request.url.path} is too large")
                finally:
                    await response.aclose()
        _check_status(response, expected_status)
        return bytes(body)


@cache
def _status_adapter() -> TypeAdapter[StatusDocument]:
    return TypeAdapter(StatusDocument)


def _check_status(response: httpx2.Response, expected: int) -> None:
    if response.status_code != expected:
        raise AgentUnavailable(f"the agent responds with {response.status_code} to {response.request.url.path}")


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate errors of httpx2, OSError and timeouts into AgentUnavailable."""
    try:
        yield
    except (TimeoutError, httpx2.ReadTimeout) as error:
        raise AgentUnavailable("the agent does not answer", unresponsive=True) from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise AgentUnavailable(f"the agent cannot be reached: {str(error) or type(error).__name__}") from error
