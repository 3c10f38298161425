"""The rate of consuming results: `agent.events_client`, compared with nats-py that pulls and acks in the same way.

All consumers read the same stream at the same time, each under its own durable name. They take turns of a few hundred
results, so that other load affects all alike. Connecting is not measured.
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
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.nats.options import DAY
from agent.adapters.nats.stream import STREAM
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.results import succeeded
from agent.domain.naming import SUBJECT_PREFIX
from agent.domain.routing import CLOUD
from agent.events_client import results
from tests.bench.report import Line
from tests.support import values
from tests.support.servers.nats import connected, running_nats

BAR = 0.5
PATTERN = f"{SUBJECT_PREFIX}.sync.*.*"
TURN = 250
"""Results per turn, which takes some tenths of a second."""

_CONCURRENT = 100
_SECONDS = 600.0

Consumer = Callable[[str, str], AsyncGenerator[object, None]]
"""Called with a URL and a durable name; yields messages, and acks each when the next is requested."""


async def raw(url: str, durable: str) -> AsyncGenerator[object, None]:
    """Yield messages of a pull subscription of nats-py, not decoded."""
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
        subscription = await jetstream.pull_subscribe_bind(durable=durable, stream=STREAM)
        while True:
            (message,) = await subscription.fetch(1)
            yield message
            await message.ack_sync()


async def by_bus(url: str, durable: str) -> AsyncGenerator[object, None]:
    """Yield decoded events of the agent's bus, which acks when the handler returns."""
    handled: asyncio.Queue[object] = asyncio.Queue(maxsize=1)
    buses = NatsBuses(_options(url), CloudEventsCodec(), clock=SystemClock(), wait_for_connection=True)
    try:
        await buses.durable.consume(PATTERN, handled.put, durable=durable)
        while True:
            yield await handled.get()
    finally:
        await buses.aclose()


def by_client(url: str, durable: str) -> AsyncGenerator[object, None]:
    """Yield results of the documented client."""
    return results(url, durable=durable)


CONSUMERS: dict[str, Consumer] = {"nats-py": raw, "the agent's bus": by_bus, "agent.events_client": by_client}


async def measure(folder: Path, count: int, rounds: int) -> list[Line]:
    """Publish `count` results and read them `rounds` times with each consumer; return the lines of the table."""
    rates: dict[str, list[float]] = {name: [] for name in CONSUMERS}
    with running_nats(folder) as server:
        size = await fill(server.url, count)
        async with asyncio.timeout(_SECONDS):
            for number in range(rounds):
                for name, measured in (await read(server.url, f"bench-{number}", count)).items():
                    rates[name] += measured
    return lines(f"{count:,} results of {size:,} bytes", rates)


async def read(url: str, durable: str, count: int) -> dict[str, list[float]]:
    """Read the stream once with each consumer; return the results per second of each turn."""
    rates: dict[str, list[float]] = {name: [] for name in CONSUMERS}
    async with AsyncExitStack() as stack:
        consumers = deque()
        for turn, (name, consumer) in enumerate(CONSUMERS.items()):
            iterator = await stack.enter_async_context(aclosing(consumer(url, f"{durable}-{turn}")))
            await anext(iterator)  # connects
            consumers.append((name, iterator))
        for _ in range((count - 1) // TURN):
            for name, iterator in consumers:
                started = time.perf_counter()
                for _ in range(TURN):
                    await anext(iterator)
                rates[name].append(TURN / (time.perf_counter() - started))
            consumers.rotate()
    return rates


async def fill(url: str, count: int) -> int:
    """Publish `count` results of different uploads; return the encoded size of one."""
    codec = CloudEventsCodec()
    buses = NatsBuses(_options(url), codec, clock=SystemClock(), wait_for_connection=True)
    try:
        for first in range(0, count, _CONCURRENT):
            batch = [_result(number) for number in range(first, min(first + _CONCURRENT, count))]
            await asyncio.gather(*(buses.durable.publish(result) for result in batch))
    finally:
        await buses.aclose()
    return len(codec.encode(_result(0)))


def _result(number: int) -> object:
    upload = values.manifest(number, f"r{number}", reflection=number, knowledge_graph=number)
    result = succeeded(upload, method=CLOUD, location="s3://memories")
    return replace(result, request_id=f"6f1c1f1e-5a77-4d3b-9a4e-{number:012d}")


def lines(what: str, rates: dict[str, list[float]]) -> list[Line]:
    table, baseline = [], rates["nats-py"]
    for name, measured in rates.items():
        ratio = statistics.median(one / other for one, other in zip(measured, baseline, strict=True))
        low, middle, high = statistics.quantiles(measured, n=4)
        words = f"{middle:,.0f} a second ({low:,.0f}-{high:,.0f})"
        line = Line(f"{what}, consumed one at a time by {name}", words, ratio)
        if name == "agent.events_client":
            line = replace(line, bar=f"at least {BAR} x nats-py", ok=ratio >= BAR)
        table.append(line)
    return table


def _options(url: str) -> NatsOptions:
    return NatsOptions(servers=(url,), name="bench")
