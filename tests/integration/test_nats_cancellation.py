"""Cancellation during a reply of NATS: nats-py loses a cancellation that coincides with a reply."""

import asyncio
import random

from tests.support.nats_bus import ended, opened_buses

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
