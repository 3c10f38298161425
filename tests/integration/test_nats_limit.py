"""A stream at its consumer limit."""

import asyncio
import re
from dataclasses import replace

import structlog
from nats.js.api import ConsumerConfig

from agent.adapters.nats.stream import STREAM
from agent.domain.naming import session_subject
from agent.events_client import results
from tests.support.nats_bus import SECONDS, RecordingHandler, ended, opened_buses, options, until
from tests.support.servers.nats import connected
from tests.support.values import manifest, succeeded

RESULT = succeeded(manifest(1))

pytest_plugins = ["tests.support.servers.fixtures"]


async def test_agents_work_and_a_new_durable_name_is_refused_with_the_command_that_allows_it(fresh_nats):
    async with connected(fresh_nats.url) as client, opened_buses(fresh_nats.url) as buses:
        manager = client.jsm()
        await buses.durable.publish(RESULT)  # the stream exists
        config = (await manager.stream_info(STREAM)).config
        await manager.update_stream(replace(config, max_consumers=1))
        await manager.add_consumer(STREAM, ConsumerConfig(durable_name="only", ack_policy="explicit"))

        heard = RecordingHandler()
        await buses.volatile.subscribe(session_subject("mac"), heard)
        await buses.durable.publish(ended(1))
        assert await heard.wait_for_event("e-1")
        assert (await buses.durable.newest(session_subject("mac"))).event == ended(1)

        with structlog.testing.capture_logs() as logs:
            found = results(options(fresh_nats.url), durable="new")
            first = asyncio.create_task(anext(found))
            await until(lambda: [line for line in logs if line["event"] == "nats_waiting"])
            (warning,) = [line for line in logs if line["event"] == "nats_waiting"]
            assert "maximum consumers limit reached" in warning["reason"]
            command = re.search(r"nats stream edit AKOSHA_SYNC --max-consumers[= ](\d+)", warning["reason"])
            assert command

            await manager.update_stream(replace(config, max_consumers=int(command[1])))
            async with asyncio.timeout(SECONDS):
                assert (await first).id == RESULT.id
            await found.aclose()
