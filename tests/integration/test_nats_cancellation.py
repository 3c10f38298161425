"""Cancellation during a reply of NATS: nats-py loses a cancellation that coincides with a reply."""

import asyncio
import random

from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from tests.contracts.test_event_bus import ended, nats_options

pytest_plugins = ["tests.support.servers.fixtures"]

ROUNDS = 300
SECONDS = 60.0


async def test_a_publisher_cancelled_at_any_moment_ends(fresh_nats):
    bus = await NatsBus.open(nats_options(fresh_nats.url), CloudEventsCodec(), clock=SystemClock())
    rng, published = random.Random(1), []

    async def publish() -> None:
        while True:
            await bus.publish(ended(len(published)))
            published.append(1)

    for _ in range(ROUNDS):
        publisher, moment = asyncio.create_task(publish()), len(published) + 1
        async with asyncio.timeout(SECONDS):
            while len(published) < moment:
                await asyncio.sleep(0)
            for _ in range(rng.randrange(60)):  # turns of the event loop, to reach a random point of the next publish
                await asyncio.sleep(0)
        publisher.cancel()
        done, _ = await asyncio.wait({publisher}, timeout=SECONDS)
        assert done, "the cancellation was lost"
    await bus.aclose()
