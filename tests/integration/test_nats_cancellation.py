"""Cancellation during a reply of NATS: nats-py loses a cancellation that coincides with a reply."""

import asyncio
import random

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.nats_bus import RecordingHandler, ended, opened_buses

pytest_plugins = ["tests.support.servers.fixtures"]

ROUNDS = 300
SECONDS = 60.0


async def test_a_publisher_cancelled_at_any_moment_ends(fresh_nats):
    rng, published = random.Random(1), []
    async with opened_buses(fresh_nats.url) as buses:

        async def publish() -> None:
            while True:
                await buses.durable.publish(ended(len(published)))
                published.append(1)

        for _ in range(ROUNDS):
            publisher, moment = asyncio.create_task(publish()), len(published) + 1
            async with asyncio.timeout(SECONDS):
                while len(published) < moment:
                    await asyncio.sleep(0)
                for _ in range(rng.randrange(60)):  # turns of the event loop, to reach a random point of a publish
                    await asyncio.sleep(0)
            publisher.cancel()
            done, _ = await asyncio.wait({publisher}, timeout=SECONDS)
            assert done, "the cancellation was lost"


async def test_a_cancelled_subscribe_leaves_no_subscription_and_no_task(fresh_nats, monkeypatch):
    async with opened_buses(fresh_nats.url) as buses:
        waiting = asyncio.Event()

        async def never() -> None:
            waiting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(buses._connection.client(), "confirm_sent", never)
        bus = FailoverBus(buses.volatile, MemoryBus(ManualClock(values.NOON)))
        subscribing = asyncio.create_task(bus.subscribe("akosha.session.>", RecordingHandler()))
        async with asyncio.timeout(SECONDS):
            await waiting.wait()
            subscribing.cancel()
            await asyncio.wait({subscribing})
        assert subscribing.cancelled()
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("bus-akosha")] == []
        assert buses.volatile._subscriptions == []
