"""What tests of the NATS bus have in common: quick patience, buses that end with their test, and rude company."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters.nats import NatsOptions, Patience
from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.events import SessionEnded, SyncProgress
from agent.ports import Message
from tests.support.servers.nats import NatsServer

SECONDS = 30
"""What is to happen happens within these seconds, or never: a guard against hanging, also on a busy machine. Fewer than
the ack wait of a test, and than the bus waits for two heartbeats.
"""

CLOCK, CODEC = SystemClock(), CloudEventsCodec()
_TIME = datetime(2025, 6, 1, tzinfo=UTC)


def options(*urls: str, patience: dict | None = None, **how: object) -> NatsOptions:
    """Return options for a test: short pauses, and an ack wait that no test lives to see."""
    quick = {"connect": 2, "ping": 5, "ping_timeout": 2, "reconnect": 0.02, "reconnect_max": 0.05, "ack_wait": 60}
    return NatsOptions(servers=urls, name="test", patience=Patience(**{**quick, **(patience or {})}), **how)


@contextlib.asynccontextmanager
async def opened_bus(
    *urls: str, wait_for_connection: bool = False, ready: bool = True, **how: object
) -> AsyncIterator[NatsBus]:
    """Open a bus on the servers; `how` is for `options`. With `ready`, it is when this returns."""
    bus = await NatsBus.open(options(*urls, **how), CODEC, clock=CLOCK, wait_for_connection=wait_for_connection)
    try:
        if ready:
            async with asyncio.timeout(SECONDS):
                await bus.wait_until_ready()
        yield bus
    finally:
        await bus.aclose()


def ended(number: int, system: str = "mac", **fields: str) -> SessionEnded:
    return SessionEnded(id=f"e-{number}", time=_TIME, system_id=system, session_id=str(number), **fields)


def progress(number: int = 1) -> SyncProgress:
    return SyncProgress(
        id=f"p-{number}", time=_TIME, system_id="mac", request_id="r", method="cloud", phase="upload", done_bytes=1,
        total_bytes=2,
    )  # fmt: skip


class Inbox:
    """A handler that records what it is given, and does with the nth delivery what the nth action says (then: ack)."""

    def __init__(self, *actions: Callable[[Message], Awaitable[None]]) -> None:
        self.ids: list[str] = []
        self._actions = actions
        self._news = asyncio.Condition()

    async def __call__(self, message: Message) -> None:
        number = len(self.ids)
        async with self._news:
            self.ids.append(message.event.id)
            self._news.notify_all()
        await (self._actions[number](message) if number < len(self._actions) else message.ack())

    async def holds(self, count: int) -> list[str]:
        """Return the ids of what was delivered, once it is so many."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS), self._news:
                await self._news.wait_for(lambda: len(self.ids) >= count)
        return self.ids

    async def hears(self, event_id: str) -> bool:
        """Say whether an event of that id is delivered, as soon as it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS), self._news:
                await self._news.wait_for(lambda: event_id in self.ids)
        return event_id in self.ids


async def until(true: Callable[[], object]) -> None:
    """Return once it is true. It is asked in every turn of the loop."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0)


async def say(server: NatsServer, *lines: bytes) -> None:
    """Say the lines of the protocol on a connection of its own, as no client library would; return when heard."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    greeting = b'CONNECT {"headers":true,"no_responders":true,"verbose":false}'
    writer.write(b"\r\n".join([greeting, *lines, b"PING", b""]))
    while (said := await reader.readline()) != b"PONG\r\n":
        assert said.startswith(b"-ERR"), said  # what it does not like, it may have passed on all the same
    writer.close()
    await writer.wait_closed()


def pub(subject: bytes, data: bytes, *, reply: bytes = b"", headers: bytes = b"") -> bytes:
    """Return the lines that publish: headers as they stand, `NATS/1.0` and all."""
    where = b" ".join(filter(None, [subject, reply]))
    if headers:
        return b"HPUB %b %d %d\r\n%b%b" % (where, len(headers), len(headers) + len(data), headers, data)
    return b"PUB %b %d\r\n%b" % (where, len(data), data)


@contextlib.asynccontextmanager
async def listening(greeting: bytes = b"", *, then: bytes = b"") -> AsyncIterator[tuple[str, bytearray]]:
    """Something that listens, greets, answers the first that it hears with `then`, and keeps all it hears.

    Yields its place, as 127.0.0.1:port, and what it has heard so far.
    """
    heard, connections = bytearray(), set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            writer.write(greeting)
            for answer in (then, b""):
                while data := await reader.read(65536):
                    heard.extend(data)
                    writer.write(answer)
                    if answer:
                        break

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", heard
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def sockets() -> set[str]:
    """Return the sockets that this process holds."""
    held = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(str(descriptor.readlink()))
    return {name for name in held if name.startswith("socket:")}
