"""How fast results come off the stream: `agent.events_client`, against plain nats-py that asks and acks the same way.

All read the same stream at the same time, each under a durable name of its own, and take turns of a few hundred
results: what else the machine does, and how fast it happens to be, is then the same for all. Connecting is left out.
"""

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from agent.adapters.nats import NatsOptions
from agent.adapters.nats.bus import NatsBus
from agent.adapters.nats.options import DAY
from agent.adapters.nats.stream import STREAM
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.results import succeeded
from agent.domain.naming import SUBJECT_PREFIX
from agent.domain.routing import CLOUD
from agent.events_client import results
from agent.ports import Message
from tests.bench.report import Line
from tests.support import values
from tests.support.servers.nats import connected, running_nats

BAR = 0.5
PATTERN = f"{SUBJECT_PREFIX}.sync.*.*"
TURN = 250
"""Results: some tenths of a second."""

_AT_ONCE = 100
_SECONDS = 600.0

Consumer = Callable[[str, str], AsyncGenerator[object, None]]
"""Yields what it consumes from the server at an address, under a durable name; acked when the next is asked for."""


async def raw(url: str, durable: str) -> AsyncGenerator[object, None]:
    """nats-py's own pull subscription. A message stays the bytes that came."""
    config = ConsumerConfig(
        durable_name=durable,
        filter_subject=PATTERN,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=60,
        max_ack_pending=1,
        inactive_threshold=30 * DAY,
    )
    async with connected(url) as client:
        jetstream = client.jetstream()
        await jetstream.add_consumer(STREAM, config)
        place = await jetstream.pull_subscribe_bind(durable=durable, stream=STREAM)
        while True:
            (message,) = await place.fetch(1)
            yield message
            await message.ack_sync()


async def by_bus(url: str, durable: str) -> AsyncGenerator[object, None]:
    """The agent's own bus with a handler that acks: events, checked, with little around them."""
    handled: asyncio.Queue[object] = asyncio.Queue(maxsize=1)

    async def handle(message: Message) -> None:
        await handled.put(message.event)
        await message.ack()

    bus = await NatsBus.open(_options(url), CloudEventsCodec(), clock=SystemClock(), patient=True)
    try:
        await bus.subscribe(PATTERN, handle, durable=durable)
        while True:
            yield await handled.get()
    finally:
        await bus.aclose()


def by_client(url: str, durable: str) -> AsyncGenerator[object, None]:
    """As programs do it."""
    return results(url, durable=durable)


CONSUMERS: dict[str, Consumer] = {"nats-py": raw, "the agent's bus": by_bus, "agent.events_client": by_client}


async def measure(folder: Path, count: int, rounds: int) -> list[Line]:
    """Put `count` results into a stream and have all consumers read it `rounds` times; return the lines."""
    rates: dict[str, list[float]] = {name: [] for name in CONSUMERS}
    with running_nats(folder) as server:
        size = await _fill(server.url, count)
        async with asyncio.timeout(_SECONDS):
            for number in range(rounds):
                for name, found in (await _read(server.url, f"bench-{number}", count)).items():
                    rates[name] += found
    return _lines(f"{count:,} results of {size:,} bytes", rates)


async def _read(url: str, durable: str, count: int) -> dict[str, list[float]]:
    """Read the stream once by all consumers; return how many results a second each took, turn by turn."""
    rates: dict[str, list[float]] = {name: [] for name in CONSUMERS}
    async with AsyncExitStack() as stack:
        reading = deque()
        for turn, (name, consumer) in enumerate(CONSUMERS.items()):
            found = await stack.enter_async_context(aclosing(consumer(url, f"{durable}-{turn}")))
            await anext(found)  # it is connected
            reading.append((name, found))
        for _ in range((count - 1) // TURN):
            for name, found in reading:
                began = time.perf_counter()
                for _ in range(TURN):
                    await anext(found)
                rates[name].append(TURN / (time.perf_counter() - began))
            reading.rotate()
    return rates


async def _fill(url: str, count: int) -> int:
    """Publish so many results as agents do, of as many uploads; return the size of one on the wire."""
    codec = CloudEventsCodec()
    bus = await NatsBus.open(_options(url), codec, clock=SystemClock(), patient=True)
    try:
        for first in range(0, count, _AT_ONCE):
            reported = [_result(number) for number in range(first, min(first + _AT_ONCE, count))]
            await asyncio.gather(*(bus.publish(result) for result in reported))
    finally:
        await bus.aclose()
    return len(codec.encode(_result(0)))


def _result(number: int) -> object:
    upload = values.manifest(number, f"r{number}", reflection=number, knowledge_graph=number)
    result = succeeded(upload, method=CLOUD, location="s3://memories")
    return replace(result, request_id=f"6f1c1f1e-5a77-4d3b-9a4e-{number:012d}")


def _lines(what: str, rates: dict[str, list[float]]) -> list[Line]:
    found, plain = [], rates["nats-py"]
    for name, seen in rates.items():
        ratio = statistics.median(one / other for one, other in zip(seen, plain, strict=True))
        low, middle, high = statistics.quantiles(seen, n=4)
        words = f"{middle:,.0f} a second ({low:,.0f}-{high:,.0f})"
        line = Line(f"{what}, consumed one by one by {name}", words, ratio)
        if name == "agent.events_client":
            line = replace(line, bar=f"at least {BAR} x nats-py", ok=ratio >= BAR)
        found.append(line)
    return found


def _options(url: str) -> NatsOptions:
    return NatsOptions(servers=(url,), name="bench")
