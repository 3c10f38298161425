"""A TCP proxy that counts connections and bytes, limits the rate, and times the copies that a store makes."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Self
from urllib.parse import urlsplit

_COPY = b"x-amz-copy-source"

Listener = Callable[[bytes], None]
"""Receives the bytes that one client sends, in pieces."""


class CountingProxy:
    """Forwards all bytes to a server and counts connections and bytes. `url` is its address, in the server's scheme.

    `sent`: bytes that clients sent. `bytes_per_second`: the rate of all that clients send together, None: no limit.
    `copying_seconds`: how long the server was busy with one or more S3 copies.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._scheme, self._host, self._port = address.scheme, address.hostname, address.port
        self._loop = asyncio.new_event_loop()
        self._open, self._forwarding = threading.Event(), set[asyncio.Task[None]]()
        self.connections = self.bytes = self.sent = 0
        self.bytes_per_second: float | None = None
        self.copying_seconds = 0.0
        self.url = ""
        self._line_free_at = self._copying_since = 0.0
        self._copying = set[asyncio.StreamWriter]()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), name="counting-proxy"
        )
        self._thread.start()
        self._open.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"{self._scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._open.set()
        await self._stopping.wait()
        server.close()
        for task in (tasks := list(self._forwarding)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        inward, outward = await asyncio.open_connection(self._host, self._port)
        listener = self._listener()

        async def upwards(piece: bytes) -> None:
            self.sent += len(piece)
            if listener is not None:
                listener(piece)
            if _COPY in piece.lower():
                self._begin_copy(writer)
            await self._wait_for_line(len(piece))

        async def downwards(_piece: bytes) -> None:
            self._end_copy(writer)

        for pair in ((reader, outward, upwards), (inward, writer, downwards)):
            task = asyncio.create_task(self._forward(*pair), name="counting-proxy-forward")
            self._forwarding.add(task)
            task.add_done_callback(self._forwarding.discard)

    async def _wait_for_line(self, count: int) -> None:
        """Wait until a line of the limited rate has sent so many bytes, after those of all connections before them."""
        if self.bytes_per_second is not None:
            now = time.monotonic()
            self._line_free_at = max(self._line_free_at, now) + count / self.bytes_per_second
            await asyncio.sleep(self._line_free_at - now)

    def _begin_copy(self, connection: asyncio.StreamWriter) -> None:
        if not self._copying:
            self._copying_since = time.monotonic()
        self._copying.add(connection)

    def _end_copy(self, connection: asyncio.StreamWriter) -> None:
        if connection in self._copying:
            self._copying.remove(connection)
            if not self._copying:
                self.copying_seconds += time.monotonic() - self._copying_since

    def _listener(self) -> Listener | None:
        """Return the listener for a new connection."""
        return None

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passing: Callable[[bytes], Awaitable[None]],
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(2**16):
                    self.bytes += len(piece)
                    await passing(piece)
                    writer.write(piece)
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
