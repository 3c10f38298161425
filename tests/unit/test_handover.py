"""The handover from the bus to a loop over results: each result is given once and acknowledged when finished."""

import asyncio
from dataclasses import replace

import pytest

from agent.domain.events import SyncFailed, SyncSkipped
from agent.events_client import handover as module
from agent.events_client.handover import Handover
from tests.support import values

SECONDS = 60


@pytest.fixture
async def handover():
    return Handover([SyncSkipped])


def deliver(handover, *events):
    """Deliver like a bus, each event after the previous one; return the delivering task and the acked events."""
    acked = []

    async def one_by_one():
        for event in events:
            await handover.handle(event)
            acked.append(event)

    return asyncio.create_task(one_by_one(), name="bus"), acked


async def test_a_result_is_acked_after_the_loop_finishes_it(handover):
    first, second = values.skipped("r1"), values.skipped("r2")
    async with asyncio.timeout(SECONDS):
        bus, acked = deliver(handover, first, second)
        turn = await handover.next()
        assert (turn.result, acked) == (first, [])
        handover.finish(turn)
        turn = await handover.next()
        assert (turn.result, acked) == (second, [first])
        handover.finish(turn)
        await bus


async def test_events_of_other_types_are_acked_at_once(handover):
    others = [values.failed(), values.request()]
    async with asyncio.timeout(SECONDS):
        bus, acked = deliver(handover, *others, values.skipped())
        turn = await handover.next()
        assert acked == others
        handover.finish(turn)
        await bus


async def test_a_finished_result_is_acked_and_not_delivered_again(handover):
    other = replace(values.skipped("r1"), system_id="another")
    async with asyncio.timeout(SECONDS):
        bus, acked = deliver(handover, *[values.skipped("r1")] * 3, other)
        handover.finish(await handover.next())
        turn = await handover.next()
        assert turn.result == other, "IDs are unique only within their system"
        assert len(acked) == 3
        handover.finish(turn)
        await bus


async def test_a_result_redelivered_during_its_handling_is_given_once(handover):
    """The connection was lost while the loop's body ran, and the ack wait has passed."""
    async with asyncio.timeout(SECONDS):
        bus, _ = deliver(handover, values.skipped("r1"))
        turn = await handover.next()
        bus.cancel()
        bus, acked = deliver(handover, values.skipped("r1"), values.skipped("r2"))
        handover.finish(turn)
        assert (await handover.next()).result == values.skipped("r2")
        assert acked == [values.skipped("r1")]
        bus.cancel()


async def test_the_number_of_remembered_results_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_REMEMBERED", 2)
    handover = Handover([SyncFailed])
    first, *others = (values.failed(f"r{number}") for number in range(4))
    async with asyncio.timeout(SECONDS):
        bus, _ = deliver(handover, first, *others, first)
        for expected in (first, *others, first):
            turn = await handover.next()
            assert turn.result == expected
            handover.finish(turn)
            assert len(handover._done) <= 2
        await bus
