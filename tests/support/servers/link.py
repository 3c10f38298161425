"""A TCP proxy to a server of this machine, whose connections fail as a test says.

async with Link(port) as link:
    link.fail(answers=ending(1000, Silent))     # from now on, 1000 bytes of answers pass; then they fall silent
    link.fail()                                 # what comes from now on passes; broken connections stay broken
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Self

Send = Callable[[bytes], Awaitable[None]]
Pass = Callable[[bytes, Send], Awaitable[None]]
"""Passes data of a connection on. Raises Silent, ConnectionResetError for a reset, EOFError for an orderly end."""

_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which `close` resets a connection."""


class Silent(Exception):  # noqa: N818 - named for the condition
    """From now on the connection passes nothing, and does not end."""


async def at_once(data: bytes, send: Send) -> None:
    await send(data)


def at_rate(bytes_per_second: int) -> Pass:
    async def slowly(data: bytes, send: Send) -> None:
        await asyncio.sleep(len(data) / bytes_per_second)
        await send(data)

    return slowly


def dripping(pause: float) -> Pass:
    """Pass one byte after each pause, in seconds."""

    async def drip(data: bytes, send: Send) -> None:
        for number in range(len(data)):
            await asyncio.sleep(pause)
            await send(data[number : number + 1])

    return drip


def ending(after: int, error: type[Exception]) -> Pass:
    """Pass `after` bytes, of all connections together; then end each connection that has more."""
    left = after

    async def cut(data: bytes, send: Send) -> None:
        nonlocal left
        head, left = data[:left], max(left - len(data), 0)
        if head:
            await send(head)
        if len(head) < len(data):
            raise error

    return cut


class Link:
    """`requests` and `answers` pass data to and from the server. Closing and opening it keeps its port.

    `swallowed` counts the bytes that silent connections have dropped. `waits` has, for each connection that was silent
    or slow when its client closed it, the seconds that the client had waited by then.
    """

    def __init__(self, port: int, *, bytes_per_second: int | None = None) -> None:
        self._upstream = port
        self._tasks: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None
        self.requests = self.answers = at_rate(bytes_per_second) if bytes_per_second else at_once
        self.port, self.connections, self.swallowed = 0, 0, 0
        self.waits: list[float] = []
        self.stranded: list[asyncio.StreamWriter] = []
        """The connections to the server whose clients have ended silent ones; they stay open."""

    async def open(self) -> None:
        """Accept connections."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A larger buffer could hold a complete upload.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
        listening.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=_CHUNK)
        self.port = listening.getsockname()[1]

    def close(self) -> None:
        """Refuse connections; those that are open stay."""
        self._server.close()

    def fail(self, *, requests: Pass = at_once, answers: Pass = at_once) -> None:
        """Pass data in this way from now on."""
        self.requests, self.answers = requests, answers

    def lose(self) -> None:
        """Drop everything that the open connections send from now on, without closing them."""
        for connection in [*self._tasks.values()]:
            connection.silent = True

    @property
    def waiting(self) -> list[float]:
        """How long the clients of connections that are silent or slow have waited so far, in seconds."""
        return [connection.waited for connection in [*self._tasks.values()] if connection.waited]

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self.stranded:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task, connection = asyncio.current_task(), _Connection(self)
        self._tasks[task] = connection
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await connection.run(self._upstream, reader, writer)
        finally:
            if connection.reset and not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            connection.close()
            del self._tasks[task]


class _Connection:
    def __init__(self, link: Link) -> None:
        self._link, self.silent, self.reset = link, False, False
        self._since: float | None = None
        self._closed = False

    @property
    def waited(self) -> float:
        return 0.0 if self._since is None or self._closed else time.monotonic() - self._since

    def close(self) -> None:
        """Keep in `waits` how long the client has waited. Idempotent."""
        if self.waited:
            self._link.waits.append(self.waited)
        self._closed = True

    async def run(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [
            asyncio.create_task(self._pump("requests", reader, upstream_writer)),
            asyncio.create_task(self._pump("answers", upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            if self.silent:  # the server does not see the end
                self._link.stranded.append(upstream_writer)
            else:
                upstream_writer.transport.abort()

    async def _pump(self, way: str, source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            drain.write(data)
            await drain.drain()

        chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
        reading = asyncio.create_task(self._read(way, source, chunks))
        try:
            while data := await chunks.get():
                if not self.silent:
                    await self._pass(way, data, send)
                if self.silent:
                    self._since = self._since or time.monotonic()
                    self._link.swallowed += len(data)
        except ConnectionResetError:
            self.reset = True
        except (OSError, EOFError):
            pass
        finally:
            reading.cancel()
        if self.silent and way == "answers":
            await asyncio.Event().wait()  # the client does not see the end

    async def _read(self, way: str, source: asyncio.StreamReader, chunks: asyncio.Queue[bytes]) -> None:
        """Read until the end, which is noticed even while data waits to be passed."""
        try:
            while data := await source.read(_CHUNK):
                await chunks.put(data)
        except OSError as error:
            self.reset |= isinstance(error, ConnectionResetError)
        if way == "requests":
            self.close()
        await chunks.put(b"")

    async def _pass(self, way: str, data: bytes, send: Send) -> None:
        self._since = time.monotonic()
        try:
            await getattr(self._link, way)(data, send)
        except Silent:
            self.silent = True
        else:
            self._since = None
