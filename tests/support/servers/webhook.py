"""A receiver of webhooks on loopback, which answers as the test chooses."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

HANG = b""
"""No answer: the connection stays open until the client closes it."""


@dataclass(frozen=True)
class Received:
    """A request: target, headers with names in lower case, and the body."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        return self.event["type"].split(".")[2]


def answer(status: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Length: 0", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


OK = answer("204 No Content")


@dataclass
class Receiver:
    """`answering` maps a request to the bytes of the answer and may be replaced at any time.

    `endless`: the answer is followed by an endless body.
    """

    answering: Callable[[Received], bytes] = lambda _: OK
    endless: bool = False
    context: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{port}/hook" if self.context else f"http://127.0.0.1:{port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.received]

    async def until(self, count: int) -> None:
        """Wait until so many requests have arrived; fails after a minute."""
        await self._until(lambda: len(self.received) >= count)

    async def until_connected(self) -> None:
        """Wait for the first connection; fails after a minute."""
        await self._until(lambda: self.connections)

    async def _until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._arrived.set()
        self._open.add(asyncio.create_task(self._answer(reader, writer)))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.splitlines()
            headers = {n.lower(): v.strip() for n, v in (line.split(":", 1) for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Received(first.split()[1], headers, body)
            self.received.append(request)
            self._arrived.set()
            if data := self.answering(request):
                writer.write(data)
                await writer.drain()
                async for piece in self._more():
                    writer.write(piece)
                    await writer.drain()
            else:
                await reader.read()  # until the client gives up

    async def _more(self) -> AsyncIterator[bytes]:
        while self.endless:
            yield b"x" * 65_536
