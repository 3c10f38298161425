"""The handover from the bus to a loop over results: each result is given once and acknowledged when finished."""

import asyncio
from dataclasses import replace

import pytest

from agent.domain.events import SyncFailed, SyncSkipped
from agent.events_client import handover as module
from agent.events_client.handover import Handover
from tests.support import values

SECONDS = 60


class Message:
    """A message of the bus; `acked` is set by its acknowledgement, `heard` by a progress report."""

    def __init__(self, event):
        self.event, self.acked, self.received = event, asyncio.Event(), asyncio.Event()

    async def ack(self):
        self.acked.set()

    async def in_progress(self):
        self.received.set()


@pytest.fixture
async def handover():
    return Handover([SyncSkipped], progress_interval_seconds=0.01)


async def deliver(handover, *events):
    """Deliver like a bus, each event after the ack of the previous one; return the delivering task and the messages."""
    messages = [Message(event) for event in events]

    async def one_by_one():
        for message in messages:
            await handover.handle(message)

    return asyncio.create_task(one_by_one(), name="bus"), messages


async def test_a_result_is_acked_after_the_loop_finishes_it(handover):
    async with asyncio.timeout(SECONDS):
        bus, (first, second) = await deliver(handover, values.skipped("r1"), values.skipped("r2"))
        turn = await handover.next()
        await first.received.wait()
        assert (turn.result, first.acked.is_set()) == (first.event, False)
        handover.finish(turn)
        turn = await handover.next()
        assert (turn.result, first.acked.is_set(), second.acked.is_set()) == (second.event, True, False)
        handover.finish(turn)
        await bus


async def test_events_of_other_types_are_acked_at_once(handover):
    async with asyncio.timeout(SECONDS):
        bus, messages = await deliver(handover, values.failed(), values.request(), values.skipped())
        turn = await handover.next()
        assert [message.acked.is_set() for message in messages] == [True, True, False]
        assert isinstance(turn.result, SyncSkipped)
        handover.finish(turn)
        await bus


async def test_a_finished_result_is_acked_and_not_delivered_again(handover):
    other = replace(values.skipped("r1"), system_id="another")
    async with asyncio.timeout(SECONDS):
        bus, messages = await deliver(handover, *[values.skipped("r1")] * 3, other)
        handover.finish(await handover.next())
        turn = await handover.next()
        assert turn.result == other, "IDs are unique only within their system"
        assert [message.acked.is_set() for message in messages] == [True, True, True, False]
        handover.finish(turn)
        await bus


async def test_a_result_redelivered_during_its_handling_is_given_once(handover):
    """The bus cancelled its handler, which reported no progress: the loop's body had blocked the event loop."""
    async with asyncio.timeout(SECONDS):
        bus, (first,) = await deliver(handover, values.skipped("r1"))
        turn = await handover.next()
        bus.cancel()
        bus, (again, other) = await deliver(handover, values.skipped("r1"), values.skipped("r2"))
        await again.received.wait()
        handover.finish(turn)
        assert (await handover.next()).result == other.event
        assert (first.acked.is_set(), again.acked.is_set()) == (False, True)
        bus.cancel()


async def test_the_number_of_remembered_results_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_REMEMBERED", 2)
    handover = Handover([SyncFailed], progress_interval_seconds=60)
    first, *others = (values.failed(f"r{number}") for number in range(4))
    async with asyncio.timeout(SECONDS):
        bus, _ = await deliver(handover, first, *others, first)
        for expected in (first, *others, first):
            turn = await handover.next()
            assert turn.result == expected
            handover.finish(turn)
            assert len(handover._done) <= 2
        await bus
