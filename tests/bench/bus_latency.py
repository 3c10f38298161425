"""What the bus by itself adds to a sync: the request's way to its handler, its ack, and the result's confirmation.

Between two turns nothing happens for a while, as between two syncs: one right after the other takes half the time.
"""

import asyncio
import time
from pathlib import Path

from agent.adapters.memory_bus import MemoryBus
from agent.adapters.nats import NatsOptions
from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.naming import request_subject
from agent.domain.routing import CLOUD
from agent.ports import EventBus, Message
from tests.bench.pairs import difference, milliseconds
from tests.bench.report import Line
from tests.support import values
from tests.support.servers.nats import running_nats

LEGS = ("a request published to its handler called", "its ack", "a result published to confirmed")
PAUSE_SECONDS = 0.1
_FIRST = 5
"""Turns that are not counted: what is loaded at its first use is loaded then."""

_SECONDS = 30.0


class Post:
    """A bus with a subscription as an uploader's. `open` it first."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._seen: asyncio.Queue[tuple[float, float, str]] = asyncio.Queue()

    async def open(self) -> None:
        await self._bus.subscribe(request_subject(values.SYSTEM, CLOUD), self._handle, durable="bench")

    async def turn(self, number: int) -> list[float]:
        """Send one request and one result; return the seconds of each leg. Raises RuntimeError for a stray one."""
        request = values.request(f"r{number}")
        result = values.succeeded(values.manifest(number, reflection=number))
        asked = time.perf_counter()
        await self._bus.publish(request)
        arrived, acked, name = await self._seen.get()
        if name != request.id:
            raise RuntimeError(f"{name} came in place of {request.id}")
        reported = time.perf_counter()
        await self._bus.publish(result)
        return [arrived - asked, acked - arrived, time.perf_counter() - reported]

    async def _handle(self, message: Message) -> None:
        arrived = time.perf_counter()
        await message.ack()
        self._seen.put_nowait((arrived, time.perf_counter(), message.event.id))


async def measure(folder: Path, rounds: int) -> list[Line]:
    """Take turns on both buses, in this process; return the lines of the table."""
    clock = SystemClock()
    with running_nats(folder) as server:
        options = NatsOptions(servers=(server.url,), name="bench")
        buses: list[EventBus] = [
            MemoryBus(clock),
            await NatsBus.open(options, CloudEventsCodec(), clock=clock, patient=True),
        ]
        try:
            async with asyncio.timeout(_SECONDS + rounds):
                here, there = await _turns([Post(bus) for bus in buses], rounds)
        finally:
            await asyncio.gather(*(bus.aclose() for bus in buses))
    return _lines(here, there)


async def _turns(posts: list[Post], rounds: int) -> list[list[list[float]]]:
    """Return what each turn took, by post."""
    for post in posts:
        await post.open()
    found: list[list[list[float]]] = [[] for _ in posts]
    for number in range(_FIRST + rounds):
        for post, turns in zip(posts, found, strict=True):
            await asyncio.sleep(PAUSE_SECONDS)
            turns.append(await post.turn(number))
    return [turns[_FIRST:] for turns in found]


def _lines(here: list[list[float]], there: list[list[float]]) -> list[Line]:
    found = []
    for leg, local, distant in zip(LEGS, zip(*here, strict=True), zip(*there, strict=True), strict=True):
        found.append(Line(f"the bus by itself, {leg}: in process", milliseconds(local)))
        found.append(Line(f"the bus by itself, {leg}: NATS", milliseconds(distant)))
    over = difference([sum(turn) for turn in here], [sum(turn) for turn in there])
    return [*found, Line("the bus by itself, all three: NATS over in process, median by turns", over.words)]
