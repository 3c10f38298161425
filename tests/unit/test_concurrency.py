"""No cancellation is lost, at whatever moment it arrives: a loop that survives errors would never end."""

import asyncio

import pytest

from agent.domain.errors import StoreError
from agent.ports.concurrency import ConcurrentTasks, finish_cleanup, gather_all


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_after(count, work):
    """Cancel a task that does the work for ever after so many turns of the loop; return whether it ended."""

    async def repeat():
        while True:
            await work()

    task = asyncio.create_task(repeat())
    await turns(count)
    task.cancel()
    await turns(40)
    ended = task.cancelled()
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0)
    return ended


@pytest.mark.parametrize("turn", range(24))
async def test_a_cancellation_that_arrives_as_a_clean_up_ends_is_not_lost(turn):
    async def clean_up():
        await finish_cleanup(asyncio.create_task(turns(2), name="clean-up"), 60)

    assert await cancelled_after(turn, clean_up)


@pytest.mark.parametrize("turn", range(24))
async def test_a_cancellation_that_arrives_as_a_task_of_a_group_fails_is_not_lost(turn):
    """The task turns its own cancellation into an error, as code does that translates what it catches."""

    async def fails():
        try:
            await turns(3)
        except asyncio.CancelledError:
            raise StoreError("cut off") from None
        raise StoreError("failed")

    async def work():
        try:
            await gather_all([fails(), turns(5)], "work")
        except StoreError:
            await asyncio.sleep(0)

    assert await cancelled_after(turn, work)


async def test_the_first_error_is_raised_alone_with_its_cause_and_the_others_have_ended():
    ended = []

    async def fails():
        raise StoreError("failed") from OSError("why")

    async def goes_on():
        try:
            await asyncio.Event().wait()
        finally:
            await turns(3)
            ended.append(True)

    with pytest.raises(StoreError, match="failed") as caught:
        await gather_all([goes_on(), fails()], "work")
    assert isinstance(caught.value.__cause__, OSError)
    assert ended == [True]


async def test_a_block_that_goes_on_starting_tasks_sees_that_one_has_failed():
    async def fails():
        raise StoreError("failed")

    started = 0

    async def start_many():
        nonlocal started
        async with ConcurrentTasks("work") as tasks:
            for started in range(1, 100):
                tasks.start(fails() if started == 3 else turns(1))
                await turns(2)
                tasks.check()

    with pytest.raises(StoreError, match="failed"):
        await start_many()
    assert started == 3


async def test_a_clean_up_that_hangs_is_cancelled_after_its_time():
    task = asyncio.create_task(asyncio.Event().wait(), name="hangs")
    await finish_cleanup(task, 0)
    await turns(2)
    assert task.cancelled()
