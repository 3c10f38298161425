"""A proxy before a server, where what passes is counted."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

Listener = Callable[[bytes], None]
"""Receives what one client sends, in pieces as they come."""


class CountingProxy:
    """Passes everything on to a server; counts what comes. `url` is where, in the server's scheme."""

    def __init__(self, endpoint: str) -> None:
        place = urlsplit(endpoint)
        self._scheme, self._host, self._port = place.scheme, place.hostname, place.port
        self._loop = asyncio.new_event_loop()
        self._open, self._passing = threading.Event(), set[asyncio.Task[None]]()
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
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"{self._scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._open.set()
        await self._over.wait()
        server.close()
        for task in (passing := list(self._passing)):
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        inward, outward = await asyncio.open_connection(self._host, self._port)
        for pair in ((reader, outward, self._listener()), (inward, writer, None)):
            task = asyncio.create_task(self._pour(*pair), name="counting-proxy-pour")
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    def _listener(self) -> Listener | None:
        """Return who is to hear what the client of a new connection sends."""
        return None

    async def _pour(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reported: Listener | None
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(2**16):
                self.bytes += len(piece)
                if reported is not None:
                    reported(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()
