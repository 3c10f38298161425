"""Helpers for tests of the NATS bus: short time limits, buses that are closed after the test, and faulty peers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters.nats import NatsOptions, Patience
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import BusError
from agent.domain.events import Event, SessionEnded, SyncProgress
from agent.ports import DurableBus, Handler, VolatileBus
from tests.support.servers.nats import NatsServer

SECONDS = 30
"""The limit for each wait, only to prevent hanging on a busy machine.

It is shorter than the ack wait of the tests, and than the bus's wait for two heartbeats.
"""

CLOCK, CODEC = SystemClock(), CloudEventsCodec()
_TIME = datetime(2025, 6, 1, tzinfo=UTC)


def options(*urls: str, patience: dict | None = None, **how: object) -> NatsOptions:
    """Return options for a test: short pauses, and an ack wait that is longer than any test."""
    quick = {"connect": 2, "ping": 5, "ping_timeout": 2, "reconnect": 0.02, "reconnect_max": 0.05, "ack_wait": 60}
    return NatsOptions(servers=urls, name="test", patience=Patience(**{**quick, **(patience or {})}), **how)


@contextlib.asynccontextmanager
async def opened_buses(
    *urls: str, wait_for_connection: bool = False, ready: bool = True, **how: object
) -> AsyncIterator[NatsBuses]:
    """Open the buses on the servers and, with `ready`, wait until they are ready. `how` is for `options`."""
    buses = NatsBuses(options(*urls, **how), CODEC, clock=CLOCK, wait_for_connection=wait_for_connection)
    try:
        await buses.first_attempt()
        if ready:
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()
        yield buses
    finally:
        await buses.aclose()


def ended(number: int, system: str = "mac", **fields: str) -> SessionEnded:
    return SessionEnded(id=f"e-{number}", time=_TIME, system_id=system, session_id=str(number), **fields)


def progress(number: int = 1) -> SyncProgress:
    return SyncProgress(
        id=f"p-{number}", time=_TIME, system_id="mac", request_id="r", method="cloud", phase="upload", done_bytes=1,
        total_bytes=2,
    )  # fmt: skip


class RecordingHandler:
    """A handler that records the events, and calls the nth action with the nth event; None does nothing."""

    def __init__(self, *actions: Handler | None) -> None:
        self.events: list[Event] = []
        self._actions, self._running = actions, False
        self._changed = asyncio.Condition()

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]

    async def __call__(self, event: Event) -> None:
        assert not self._running, "two handlers run at once in one subscription"
        self._running = True
        try:
            number = len(self.events)
            async with self._changed:
                self.events.append(event)
                self._changed.notify_all()
            if number < len(self._actions) and (action := self._actions[number]) is not None:
                await action(event)
        finally:
            self._running = False

    async def wait_for_count(self, count: int) -> list[str]:
        """Wait for `count` deliveries and return the ids of all deliveries."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS), self._changed:
                await self._changed.wait_for(lambda: len(self.events) >= count)
        return self.ids

    async def wait_for_event(self, event_id: str) -> bool:
        """Wait for the delivery of an event and return whether it was delivered."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS), self._changed:
                await self._changed.wait_for(lambda: event_id in self.ids)
        return event_id in self.ids


class Hang:
    """A handler that runs until it is cancelled, and whose cleanup takes a few turns of the event loop."""

    def __init__(self) -> None:
        self._started = asyncio.Event()
        self.cleaned_up = False

    async def wait_started(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self._started.wait()

    async def __call__(self, _event: Event) -> None:
        self._started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.cleaned_up = True


async def publish_until_accepted(bus: DurableBus | VolatileBus, event: Event) -> None:
    """Publish until the bus accepts the event. Any error except a transient BusError is raised."""
    async with asyncio.timeout(4 * SECONDS):
        while True:
            try:
                return await bus.publish(event)
            except BusError as error:
                if not error.transient:
                    raise
                await CLOCK.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true; it is checked in each iteration of the event loop."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def send_lines(server: NatsServer, *lines: bytes) -> None:
    """Send lines of the protocol on a separate connection, without a client library; wait until the server has them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    greeting = b'CONNECT {"headers":true,"no_responders":true,"verbose":false}'
    writer.write(b"\r\n".join([greeting, *lines, b"PING", b""]))
    while (line := await reader.readline()) != b"PONG\r\n":
        assert line.startswith(b"-ERR"), line  # the server may pass on a message in spite of its error
    writer.close()
    await writer.wait_closed()


def pub(subject: bytes, data: bytes, *, reply: bytes = b"", headers: bytes = b"") -> bytes:
    """Return the lines that publish a message. `headers` are sent unchanged and include `NATS/1.0`."""
    subjects = b" ".join(filter(None, [subject, reply]))
    if headers:
        return b"HPUB %b %d %d\r\n%b%b" % (subjects, len(headers), len(headers) + len(data), headers, data)
    return b"PUB %b %d\r\n%b" % (subjects, len(data), data)


@contextlib.asynccontextmanager
async def recording_server(greeting: bytes = b"", *, then: bytes = b"") -> AsyncIterator[tuple[str, bytearray]]:
    """Run a server that sends `greeting`, answers the first data with `then`, and records all data.

    Yields its address, as 127.0.0.1:port, and the data received so far.
    """
    received, connections = bytearray(), set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            writer.write(greeting)
            for answer in (then, b""):
                while data := await reader.read(65536):
                    received.extend(data)
                    writer.write(answer)
                    if answer:
                        break

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", received
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def sockets() -> set[str]:
    """Return the open sockets of this process."""
    targets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.add(str(descriptor.readlink()))
    return {target for target in targets if target.startswith("socket:")}
