"""An HTTP server that answers with bytes chosen by the test and closes the connection after each answer."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

Answering = Callable[[str, str], bytes]
"""Returns the complete answer for a method and a request target."""


def answer(status: str = "200 OK", body: bytes | str = b"", length: str | None = None, **headers: str) -> bytes:
    """Return an answer; `length` replaces the body's length in Content-Length, "none" omits the header."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length != "none":
        lines.append(f"Content-Length: {len(data) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass
class OddServer:
    """`answering` may be replaced at any time; `seen` lists the requests."""

    answering: Answering = lambda _method, _target: answer()
    seen: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            self.seen.append(f"{method} {target}")
            fields = {
                name.lower(): value.strip()
                for name, value in (line.split(":", 1) for line in head.splitlines()[1:] if ":" in line)
            }
            if "100-continue" in fields.get("expect", ""):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(int(fields.get("content-length", 0)))
            writer.write(self.answering(method, target))
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
