"""Event streams: server-sent events with heartbeats; a reader that stalls is disconnected."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from http import HTTPStatus

import structlog
from aiohttp import HttpVersion11, web

from agent.application.monitoring.agent_service import AgentService
from agent.domain.errors import AkoshaError
from agent.domain.events import Event, SyncProgress
from agent.entrypoints.control_api.connection import Connection, Limits
from agent.entrypoints.control_api.problems import Problem
from agent.ports import HistoryEntry

EVENT_STREAM = "text/event-stream"

_RETRY = b"retry: 1000\n\n"
_HEARTBEAT = b":\n\n"
_log = structlog.get_logger()


class EventStreams:
    """The open event streams."""

    def __init__(self, agent_service: AgentService, encode: Callable[[Event], bytes], limits: Limits) -> None:
        self._agent_service, self._encode_event, self._limits = agent_service, encode, limits
        self._readers = 0
        self._newest: tuple[HistoryEntry | SyncProgress, bytes] | None = None
        self._ended = asyncio.get_running_loop().create_future()

    async def respond(
        self, request: web.Request, *, after: int | None, may_read: Callable[[], bool]
    ) -> web.StreamResponse:
        """Send the events after a position (None: new ones only) until the reader disconnects or `end` is called.

        If `may_read` returns False later, the connection is closed instead of sending more.

        A reader without a position gets the current one first, so that it misses nothing if it reconnects before its
        first event. Raises Problem if there are too many readers, StateError.
        """
        # Read before the response begins: a reader that has received the headers gets all later events.
        present = await self._agent_service.last_position() if after is None and request.method != "HEAD" else None
        if self._readers >= self._limits.readers:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"too many event readers: {self._readers}",
                hint="stop one of them",
                headers={"Retry-After": "10"},
                close=True,
            )
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
        response.force_close()
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()  # the last chunk distinguishes a clean end from a broken connection
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        self._readers += 1
        try:
            await self._send_events(request, response, after, present, may_read)
        except AkoshaError as error:
            _log.warning("control_events_broken", error=str(error))
            _abort(request)  # not a clean end, so the reader reconnects and continues
        except ConnectionError:
            pass  # the reader has disconnected, or was
        finally:
            self._readers -= 1
        connection = request.protocol
        assert isinstance(connection, Connection)
        if connection.bytes_stalled:
            seconds = self._limits.stalled_seconds
            _log.info("control_reader_stalled", bytes_waiting=connection.bytes_stalled, after_seconds=seconds)
        return response

    def end(self) -> None:
        """End every stream cleanly."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def _send_events(
        self,
        request: web.Request,
        response: web.StreamResponse,
        after: int | None,
        present: int | None,
        may_read: Callable[[], bool],
    ) -> None:
        connection = request.protocol
        assert isinstance(connection, Connection)
        await self._write(request, response, _RETRY if present is None else _RETRY + b"id: %d\n\n" % present)
        async with aclosing(self._agent_service.events(after=present if after is None else after)) as events:
            following = asyncio.ensure_future(anext(events))
            try:
                while not (self._ended.done() or connection.lost.done()):
                    done, _ = await asyncio.wait(
                        {following, self._ended, connection.lost},
                        timeout=self._limits.heartbeat_seconds,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if not may_read():
                        _abort(request)  # not a clean end, so the reader reconnects and gets the reason
                        return
                    if following in done:
                        await self._write(request, response, self._encode(following.result()))
                        following = asyncio.ensure_future(anext(events))
                    elif not done:
                        await self._write(request, response, _HEARTBEAT)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    def _encode(self, item: HistoryEntry | SyncProgress) -> bytes:
        """Encode an event once for all readers that get it at the same time."""
        if self._newest is None or self._newest[0] is not item:
            self._newest = item, self._encoded(item)
        return self._newest[1]

    def _encoded(self, item: HistoryEntry | SyncProgress) -> bytes:
        event, position = (item, b"") if isinstance(item, SyncProgress) else (item.event, b"id: %d\n" % item.position)
        return b"%sevent: %s\ndata: %s\n\n" % (position, event.type.encode(), self._encode_event(event))

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """Write, and wait until the kernel has all data. Raises ConnectionError, also if the reader has stalled."""
        await response.write(data)
        await request.writer.drain()
        connection = request.protocol
        assert isinstance(connection, Connection)
        if connection.lost.done():  # `drain` then returns
            raise ConnectionResetError("the reader has disconnected, or has stalled")


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
