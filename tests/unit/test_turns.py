"""Turns limit the share of each task: their size, order and number."""

import asyncio

import pytest

from agent.application.ingest.turns import Share, Turns
from tests.support.clock import ManualClock


def ignore_progress() -> None:
    pass


@pytest.fixture
def turns():
    return Turns(ManualClock(), share=Share(rows=10, raw_bytes=100, seconds=5), at_once=1, open_at_once=3)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_turn_that_is_used_up_lets_the_next_task_run_first(turns):
    order = []

    async def work(name, parts):
        async with turns.one() as turn:
            for part in range(parts):
                order.append(f"{name}{part}")
                turn.spend(rows=5)
                await turn.pause(ignore_progress, 60)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for name, parts in (("a", 5), ("b", 1), ("c", 3)):
            group.create_task(work(name, parts))
    assert order == ["a0", "a1", "b0", "c0", "c1", "a2", "a3", "c2", "a4"]


@pytest.mark.parametrize("spent", [{"rows": 10}, {"raw_bytes": 100}])
async def test_a_share_is_limited_in_rows_and_bytes(turns, spent):
    async with turns.one() as turn:
        assert not turn.used_up
        turn.spend(**spent)
        assert turn.used_up
        await turn.pause(ignore_progress, 60)
        assert not turn.used_up, "the next turn has a full share"


async def test_a_share_is_limited_in_time():
    clock = ManualClock()
    async with Turns(clock, share=Share(seconds=5)).one() as turn:
        await clock.advance(5)
        assert turn.used_up


async def test_cancelling_a_wait_for_the_next_turn_releases_no_turn(turns):
    async with asyncio.timeout(10):
        kept = [turns.one(), turns.one()]  # kept alive: a turn ends when it is collected
        async with turns.one() as first:
            second = asyncio.create_task(kept[0].__aenter__())
            await settled()
            first.spend(rows=10)
            waiting = asyncio.create_task(first.pause(ignore_progress, 60))
            await settled()
            assert second.done()
            waiting.cancel()
            await asyncio.wait({waiting})
        third = asyncio.create_task(kept[1].__aenter__())
        await settled()
        assert not third.done(), "the second task has the turn"
        second.result().end()
        await third


async def test_the_number_of_open_turns_is_limited(turns):
    opened = [turns.one() for _ in range(4)]
    async with asyncio.timeout(10):
        for each in opened[:3]:
            (await each.__aenter__()).end()
        fourth = asyncio.create_task(opened[3].__aenter__())
        await settled()
        assert not fourth.done()
        await opened[0].__aexit__(None, None, None)
        await fourth
