"""A TCP proxy that counts connections and bytes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

Listener = Callable[[bytes], None]
"""Receives the bytes that one client sends, in pieces."""


class CountingProxy:
    """Forwards all bytes to a server and counts connections and bytes. `url` is its address, in the server's scheme."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._scheme, self._host, self._port = address.scheme, address.hostname, address.port
        self._loop = asyncio.new_event_loop()
        self._open, self._forwarding = threading.Event(), set[asyncio.Task[None]]()
        self.connections = self.bytes = 0
        self.url = ""

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
        for pair in ((reader, outward, self._listener()), (inward, writer, None)):
            task = asyncio.create_task(self._forward(*pair), name="counting-proxy-forward")
            self._forwarding.add(task)
            task.add_done_callback(self._forwarding.discard)

    def _listener(self) -> Listener | None:
        """Return the listener for a new connection."""
        return None

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener: Listener | None
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(2**16):
                self.bytes += len(piece)
                if listener is not None:
                    listener(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()
