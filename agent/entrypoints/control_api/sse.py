"""Readers of the event stream: server-sent events, a sign of life from time to time, and an end for those who stall."""

import asyncio
from contextlib import aclosing
from http import HTTPStatus

import structlog
from aiohttp import HttpVersion11, web

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.domain.errors import AkoshaError
from agent.domain.events import Event
from agent.entrypoints.control_api.connection import Connection
from agent.entrypoints.control_api.limits import Limits
from agent.entrypoints.control_api.problems import COMMON, Problem
from agent.ports import HistoryEntry

EVENT_STREAM = "text/event-stream"

_HELLO = b"retry: 1000\n\n"
_HEARTBEAT = b":\n\n"
_BUFFER_BYTES = 16 * 1024
"""What may wait for one reader beside the event that is just being written."""

_log = structlog.get_logger()


class EventReaders:
    """All that read. A timer runs while there are any."""

    def __init__(self, agent_service: AgentService, home: Home, limits: Limits) -> None:
        self._agent_service, self._codec, self._limits = agent_service, home.codec, limits
        self._readers: set[_Reader] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._readers)

    async def follow(self, request: web.BaseRequest, *, after: int | None) -> web.StreamResponse:
        """Answer with the events after a position (None: from now on), until the reader leaves or `end`.

        A reader without a position is told the present one first: if it drops before its first event, it comes back
        with that, and misses nothing. Raises Problem where there are too many readers, StateError.
        """
        # Before the answer begins: whoever has its head hears all that happens from then on.
        present = await self._agent_service.last_position() if after is None and request.method != "HEAD" else None
        if len(self._readers) >= self._limits.readers:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{len(self._readers)} readers follow the events already",
                hint="end one of them",
                headers={"Retry-After": "10"},
                close=True,
            )
        response = web.StreamResponse(headers={**COMMON, "Content-Type": EVENT_STREAM})
        response.force_close()
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()  # by which a clean end is told from another
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        reader = _Reader(request, response)
        self._readers.add(reader)
        if self._timer is None:
            self._timer = reader.loop.call_later(self._limits.heartbeat_seconds, self._beat)
        try:
            await self._tell(reader, after, present)
        except ConnectionError:
            pass  # it has left
        except asyncio.CancelledError:
            if not reader.ending:
                raise
            reader.task.uncancel()
        except AkoshaError as error:
            _log.warning("control_events_broken", error=str(error))
            reader.cut()  # not a clean end: it comes back and goes on where it was
        finally:
            self._readers.discard(reader)
            if not self._readers and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        return response

    def end(self) -> None:
        """Give every reader a clean end."""
        for reader in self._readers:
            reader.end()

    async def _tell(self, reader: "_Reader", after: int | None, present: int | None) -> None:
        await reader.write(_HELLO if present is None else _HELLO + b"id: %d\n\n" % present)
        async with aclosing(self._agent_service.events(after=present if after is None else after)) as events:
            async for happened in events:
                if isinstance(happened, HistoryEntry):
                    await reader.write(self._written(happened.event, happened.position))
                else:
                    await reader.write(self._written(happened, None))

    def _written(self, event: Event, position: int | None) -> bytes:
        place = b"" if position is None else b"id: %d\n" % position
        return b"%sevent: %s\ndata: %s\n\n" % (place, event.type.encode(), self._codec.encode(event))

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.heartbeat_seconds, self._beat) if self._readers else None
        for reader in tuple(self._readers):
            reader.beat(self._limits.stalled_seconds)


class _Reader:
    """One of them, served by the task that it was made in."""

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert isinstance(request.protocol, Connection)
        self.task, self.loop, self.ending = task, task.get_loop(), False
        self._request, self._response = request, response
        self._beats = 0
        self._taken, self._taken_at = 0, self.loop.time()
        request.protocol.on_lost = task.cancel
        if request.transport is not None:
            request.transport.set_write_buffer_limits(_BUFFER_BYTES)

    async def write(self, piece: bytes) -> None:
        """Send it; return when what waits is little again. Raises ConnectionError."""
        await self._response.write(piece)
        await self._request.writer.drain()

    def beat(self, stalled_seconds: float) -> None:
        """Give a sign of life, if nothing waits; cut it off where what waits has not moved for so long."""
        transport = self._request.transport
        if transport is None:
            return
        waits = transport.get_write_buffer_size()
        taken = self._request.writer.output_size + self._beats - waits
        if waits and taken <= self._taken:
            if self.loop.time() - self._taken_at >= stalled_seconds:
                _log.info("control_reader_stalled", bytes_waiting=waits, after_seconds=stalled_seconds)
                self.cut()
            return
        self._taken, self._taken_at = taken, self.loop.time()
        if not waits:
            beat = b"%x\r\n%s\r\n" % (len(_HEARTBEAT), _HEARTBEAT) if self._response.chunked else _HEARTBEAT
            transport.write(beat)
            self._beats += len(beat)

    def cut(self) -> None:
        """Close the connection, whatever waits."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def end(self) -> None:
        """Have the stream end as if there were nothing more to tell."""
        self.ending = True
        self.task.cancel()
