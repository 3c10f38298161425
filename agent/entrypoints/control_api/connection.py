"""Connections: who may have one, how many there are, and how long one may keep silent before it has asked."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from agent.entrypoints.control_api.limits import Limits
from agent.entrypoints.control_api.peers import peer_uid
from agent.entrypoints.control_api.problems import Problem

SPARE = 32
"""Connections beyond the limit that are told so; those beyond these are closed without a word."""

_LINGERING_SECONDS = 1.0
"""For an answer that comes before the body has: what is sent meanwhile is passed over, so that the answer is read."""

_log = structlog.get_logger()

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connections(web.Server):
    """What makes a connection for whoever comes, from any door. `uid`: whose processes may use the Unix socket."""

    def __init__(self, answer: Answer, *, limits: Limits, uid: int) -> None:
        super().__init__(
            answer,
            access_log=None,
            keepalive_timeout=limits.head_seconds,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            lingering_time=_LINGERING_SECONDS,
            auto_decompress=False,  # a small body may hold a huge one
        )
        self.limits, self.uid, self.most = limits, uid, limits.fitting()
        self.admitted: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._refused: set[int] = set()
        self._ending = False

    def __call__(self) -> "Connection":
        return Connection(self, loop=self._loop, **self._kwargs)

    def may_enter(self, transport: asyncio.Transport) -> bool:
        """Say whether a connection may ask: there is room, and at the Unix socket its process is of our user."""
        if self._ending or len(self.admitted) >= self.most + SPARE:
            return False
        connected = transport.get_extra_info("socket")
        if not _is_unix(connected):
            return True
        try:
            uid = peer_uid(connected)
        except OSError:  # it is gone again
            return False
        if uid is None or uid == self.uid:
            return True
        if uid not in self._refused:  # once: others must not fill our log
            self._refused.add(uid)
            _log.warning("control_peer_refused", uid=uid, why="only processes of this user may ask")
        return False

    async def end(self) -> None:
        """Let requests at work come to their end, for a while, then close everything. No task is left."""
        self._ending = True  # one that was accepted a moment ago may come still
        self.pre_shutdown()
        await self.shutdown(self.limits.ending_seconds)
        if left := set(self.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left)


class Connection(web.RequestHandler):
    """One connection. Its first request must have a head in time; aiohttp sees to the later ones."""

    __slots__ = ("_door", "_head_timer", "loopback", "on_lost", "surplus")

    def __init__(self, door: Connections, **how: object) -> None:
        super().__init__(door, **how)  # type: ignore[arg-type] # what Connections has given, and aiohttp checks
        self._door = door
        self._head_timer: asyncio.TimerHandle | None = None
        self.loopback = False
        """Whether it came through the port."""
        self.surplus = False
        """Whether there are too many: it is told so, and nothing else."""
        self.on_lost: Callable[[], object] | None = None
        """Called when it is lost, whoever closed it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        door = self._door
        if not door.may_enter(transport):
            transport.abort()  # nothing was read, and nothing will be
            return
        self.loopback = not _is_unix(transport.get_extra_info("socket"))
        self.surplus = len(door.admitted) >= door.most
        door.admitted.add(self)
        super().connection_made(transport)
        if self._task_handler is not None:
            door.tasks.add(self._task_handler)
            self._task_handler.add_done_callback(door.tasks.discard)
        self._head_timer = self._loop.call_later(door.limits.head_seconds, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.head_arrived()
        self._door.admitted.discard(self)
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if self in self._door.admitted:
            super().data_received(data)

    def head_arrived(self) -> None:
        """There is a request: from now on its own limits hold."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def log_exception(self, *_: object, **how: object) -> None:
        """What aiohttp meets."""
        _log.error("control_failed", exc_info=how.get("exc_info"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request. Anything else has been answered by whom `Connections` was given."""
        del message
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("half an answer is on its way, or nobody is there to get one")
        if not isinstance(exc, HttpProcessingError):
            _log.error("control_failed", exc_info=exc)
            return Problem(HTTPStatus(status), "the agent met an error: its log says which", close=True).response()
        if isinstance(exc, LineTooLong):
            fault, what = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large"
        else:
            first, *_ = exc.message.splitlines() or [""]
            fault, what = HTTPStatus.BAD_REQUEST, f"not an HTTP request: {first[:200]}"
        return Problem(fault, what, close=True).response()


def _is_unix(connected: object) -> bool:
    return isinstance(connected, asyncio.trsock.TransportSocket) and connected.family == socket.AF_UNIX
