"""The time that the bus adds to a sync: delivery of the request, and confirmation of the result.

A pause separates the turns, as syncs are apart: without it a turn takes half the time.
"""

import asyncio
import time
from pathlib import Path

from agent.adapters.memory_bus import MemoryBus, MemoryDurableBus
from agent.adapters.nats import NatsOptions
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.events import Event
from agent.domain.naming import request_subject
from agent.domain.routing import CLOUD
from agent.ports import DurableBus, VolatileBus
from tests.bench.pairs import difference, milliseconds
from tests.bench.report import Line
from tests.support import values
from tests.support.servers.nats import running_nats

LEGS = ("a request published to its handler called", "a result published to confirmed")
PAUSE_SECONDS = 0.1
_FIRST = 5
"""Turns that are not counted, because code is loaded at its first use."""

_SECONDS = 30.0


class Subscriber:
    """The buses of an agent with a subscription like that of the cloud method. Call `open` first."""

    def __init__(self, bus: VolatileBus, results_bus: DurableBus) -> None:
        self._bus, self._results_bus = bus, results_bus
        self._handled: asyncio.Queue[tuple[float, str]] = asyncio.Queue()

    async def open(self) -> None:
        await self._bus.subscribe(request_subject(values.SYSTEM, CLOUD), self._handle)

    async def aclose(self) -> None:
        await self._bus.aclose()
        await self._results_bus.aclose()

    async def turn(self, number: int) -> list[float]:
        """Publish a request and a result; return the seconds of each leg. Raises RuntimeError for another event."""
        request = values.request(f"r{number}")
        result = values.succeeded(values.manifest(number, reflection=number))
        requested = time.perf_counter()
        await self._bus.publish(request)
        arrived, name = await self._handled.get()
        if name != request.id:
            raise RuntimeError(f"{name} arrived instead of {request.id}")
        succeeded_at = time.perf_counter()
        await self._results_bus.publish(result)
        return [arrived - requested, time.perf_counter() - succeeded_at]

    async def _handle(self, event: Event) -> None:
        self._handled.put_nowait((time.perf_counter(), event.id))


async def measure(folder: Path, rounds: int) -> list[Line]:
    """Measure both buses in turns, in this process; return the lines of the table."""
    clock = SystemClock()
    with running_nats(folder) as server:
        options = NatsOptions(servers=(server.url,), name="bench")
        nats = NatsBuses(options, CloudEventsCodec(), clock=clock, wait_for_connection=True)
        subscribers = [
            Subscriber(MemoryBus(clock), MemoryDurableBus(clock)),
            Subscriber(nats.volatile, nats.durable),
        ]
        try:
            async with asyncio.timeout(_SECONDS + rounds):
                local, remote = await _turns(subscribers, rounds)
        finally:
            await asyncio.gather(*(one.aclose() for one in subscribers))
    return _lines(local, remote)


async def _turns(subscribers: list[Subscriber], rounds: int) -> list[list[list[float]]]:
    """Return the seconds of each leg of each turn, by subscriber."""
    for subscriber in subscribers:
        await subscriber.open()
    times: list[list[list[float]]] = [[] for _ in subscribers]
    for number in range(_FIRST + rounds):
        for subscriber, turns in zip(subscribers, times, strict=True):
            await asyncio.sleep(PAUSE_SECONDS)
            turns.append(await subscriber.turn(number))
    return [turns[_FIRST:] for turns in times]


def _lines(local: list[list[float]], remote: list[list[float]]) -> list[Line]:
    table = []
    for leg, local_times, remote_times in zip(LEGS, zip(*local, strict=True), zip(*remote, strict=True), strict=True):
        table.append(Line(f"the bus alone, {leg}: in process", milliseconds(local_times)))
        table.append(Line(f"the bus alone, {leg}: NATS", milliseconds(remote_times)))
    added = difference([sum(turn) for turn in local], [sum(turn) for turn in remote])
    return [*table, Line("the bus alone, both: NATS minus in process, median of turns", added.words)]
