"""Connections: which and how many are admitted, and the time limits for the first request and for a stalled client."""

import asyncio
import functools
import os
import resource
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from agent.entrypoints.control_api.auth import LoopbackRules, peer_uid
from agent.entrypoints.control_api.problems import Problem, internal_error

SPARE_CONNECTIONS = 32
"""Connections beyond the limit that get a 503; further ones are closed without a response."""

_LINGERING_SECONDS = 1.0
"""How long a body is read and discarded after an early response, so that the client reads the response."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the control API. Times in seconds, sizes in bytes.

    `head_seconds` also limits the idle time between two requests. `stalled_seconds` limits how long a client may accept
    no data. `shutdown_seconds` limits the requests in progress at shutdown. A quarter of the `connections` is reserved
    for the Unix socket: every local user can connect to a port.
    """

    head_seconds: float = 10.0
    body_seconds: float = 10.0
    heartbeat_seconds: float = 15.0
    stalled_seconds: float = 60.0
    shutdown_seconds: float = 0.3
    body_bytes: int = 64 * 1024
    line_bytes: int = 8 * 1024
    readers: int = 1000
    connections: int = 1100

    def max_connections(self) -> int:
        """Return the connection limit of this process: at most half of its file descriptor limit."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self.connections if soft == resource.RLIM_INFINITY else max(min(self.connections, soft // 2), 1)


DEFAULT_LIMITS = Limits()


class Connections:
    """Admits connections: within the limit, and on the Unix socket from processes of this user only."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.limit = limits, limits.max_connections()
        self.open: set[Connection] = set()
        self.closed = False
        self._uid = os.geteuid()
        self._refused_uids: set[int] = set()

    def close_those_of(self, rules: LoopbackRules) -> None:
        """Close the connections of a port."""
        for connection in [*self.open]:
            if connection.rules is rules:
                connection.force_close()

    def excess(self, rules: LoopbackRules | None) -> int:
        """Return by how many the connections of a port, or of the Unix socket (None), exceed their limit."""
        of_ports, limit_of_ports = sum(one.rules is not None for one in self.open), self.limit - self.limit // 4
        excess = len(self.open) - self.limit
        if rules is None:
            excess -= max(of_ports - limit_of_ports, 0)
        else:
            excess = max(excess, of_ports - limit_of_ports)
        return excess

    def admit(self, transport: asyncio.Transport, rules: LoopbackRules | None) -> bool:
        # Without a limit, clients could use up the file descriptors that syncs need.
        if self.closed or self.excess(rules) >= SPARE_CONNECTIONS:
            return False
        connected = transport.get_extra_info("socket")
        if connected.family != socket.AF_UNIX:
            return True
        try:
            uid = peer_uid(connected)
        except OSError:  # the client has already disconnected
            return False
        if uid is None or uid == self._uid:
            return True
        if uid not in self._refused_uids:  # once per user: others must not fill the log
            self._refused_uids.add(uid)
            _log.warning("control_peer_refused", uid=uid, reason="only processes of this user may connect")
        return False


class Connection(web.RequestHandler):
    """A connection with a time limit for the head of its first request; aiohttp limits the idle time after that.

    A client that accepts no data is disconnected. `rules` are those of the port, None over the Unix socket.
    """

    __slots__ = (
        "_connections",
        "_head_timer",
        "_write_timer",
        "bytes_stalled",
        "has_own_peer",
        "lost",
        "over_limit",
        "rules",
    )

    def __init__(self, manager: web.Server, connections: Connections, *, rules: LoopbackRules | None) -> None:
        loop, limits = asyncio.get_running_loop(), connections.limits
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # None disables it
            keepalive_timeout=limits.head_seconds,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            lingering_time=_LINGERING_SECONDS,
            auto_decompress=False,  # a small body could decompress to a huge one
        )
        self._connections = connections
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.bytes_stalled = 0
        """The data that the client had not accepted when it was disconnected for that."""
        self.rules = rules
        self.has_own_peer: bool | None = None
        """Whether the peer of the TCP connection belongs to this user; None until it was asked."""
        self.over_limit = False
        self.lost: asyncio.Future[None] = loop.create_future()
        """Done when the connection is closed, by either side."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._connections.admit(transport, self.rules):
            transport.abort()  # nothing has been read or sent
            return
        self.over_limit = self._connections.excess(self.rules) >= 0
        self._connections.open.add(self)
        transport.set_write_buffer_limits(0)  # writing pauses until the kernel has all data
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._head_timer = loop.call_later(self._connections.limits.head_seconds, self.force_close)

    def data_received(self, data: bytes) -> None:
        if self in self._connections.open:
            super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_stall()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _limit_stall(self, waiting_before: int | None = None) -> None:
        """Disconnect the client unless it has accepted data since the last call; then wait again."""
        if self.transport is None:
            return
        waiting = self.transport.get_write_buffer_size()
        if waiting_before is not None and waiting >= waiting_before:
            self.bytes_stalled = waiting
            self.transport.abort()
            return
        seconds = self._connections.limits.stalled_seconds
        self._write_timer = asyncio.get_running_loop().call_later(seconds, self._limit_stall, waiting)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self.head_received()
        self._stop_write_timer()
        self._connections.open.discard(self)
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)

    def head_received(self) -> None:
        """Stop the timer of the first request."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def log_exception(self, *_: object, **keys: object) -> None:
        """Log an error inside aiohttp."""
        _log.error("control_failed", exc_info=keys.get("exc_info"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to an invalid HTTP request; `problem_middleware` handles errors of valid ones."""
        del message
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("the response has begun, or the client has disconnected")
        if isinstance(exc, LineTooLong):
            problem = Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large", close=True)
        elif isinstance(exc, HttpProcessingError):
            first, *_ = exc.message.splitlines() or [""]
            problem = Problem(HTTPStatus.BAD_REQUEST, f"not an HTTP request: {first[:200]}", close=True)
        else:
            _log.error("control_failed", exc_info=exc)
            problem = internal_error(HTTPStatus(status))
        return problem.response()


@dataclass(frozen=True, slots=True)
class LoopbackListener:
    """A loopback port that is listened on."""

    rules: LoopbackRules
    _server: asyncio.Server
    _connections: Connections

    @classmethod
    async def open(
        cls, manager: web.Server, connections: Connections, *, address: str, port: int, token: str, backlog: int
    ) -> Self:
        """Listen on a port, 0: on any that is free. Raises OSError. `token`: see `LoopbackRules`."""
        listening = socket.create_server((address, port), backlog=backlog)
        rules = LoopbackRules(address, listening.getsockname()[1], token)
        accept = functools.partial(Connection, manager, connections, rules=rules)
        server = await asyncio.get_running_loop().create_server(accept, sock=listening, backlog=backlog)
        return cls(rules, server, connections)

    def close(self) -> None:
        """Stop listening. Connections stay open."""
        self._server.close()

    def close_connections(self) -> None:
        """Close the connections of the port."""
        self._connections.close_those_of(self.rules)
