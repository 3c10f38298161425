"""No cancellation is lost, whenever it arrives. A loop that survives errors would otherwise never end."""

import asyncio
import threading

import pytest

from agent.domain.errors import NO_THREAD, StoreError
from agent.ports.concurrency import ConcurrentTasks, SharingExecutor, finish_cleanup, gather_all, in_daemon_thread


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_after(count, work):
    """Repeat the work in a task, cancel it after `count` turns of the event loop, and return whether it ended."""

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
async def test_a_cancellation_at_the_end_of_a_cleanup_is_not_lost(turn):
    async def cleanup():
        await finish_cleanup(asyncio.create_task(turns(2), name="cleanup"), 60)

    assert await cancelled_after(turn, cleanup)


@pytest.mark.parametrize("turn", range(24))
async def test_a_cancellation_while_a_task_of_a_group_fails_is_not_lost(turn):
    """The task turns its own cancellation into an error, like code that translates every exception."""

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


async def test_the_first_error_is_raised_alone_after_the_other_tasks_ended():
    ended = []

    async def fails():
        raise StoreError("failed") from OSError("cause")

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            await turns(3)
            ended.append(True)

    with pytest.raises(StoreError, match="failed") as caught:
        await gather_all([waits(), fails()], "work")
    assert isinstance(caught.value.__cause__, OSError)
    assert ended == [True]


async def test_a_block_that_starts_tasks_stops_when_one_has_failed():
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


async def test_a_hanging_cleanup_is_cancelled_after_its_timeout():
    task = asyncio.create_task(asyncio.Event().wait(), name="hangs")
    await finish_cleanup(task, 0)
    await turns(2)
    assert task.cancelled()


def exhaust(monkeypatch) -> None:
    """From now on, no thread can be started."""

    def start(_thread):
        raise RuntimeError(NO_THREAD)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_if_no_thread_can_be_started_work_waits_for_the_existing_ones(monkeypatch):
    release = threading.Event()
    with SharingExecutor(4) as executor:
        first = executor.submit(release.wait, 60)
        exhaust(monkeypatch)
        second = executor.submit(int, "7")
        assert not second.done()
        release.set()
        assert (first.result(60), second.result(60)) == (True, 7)


async def test_work_for_a_new_thread_is_done_by_an_existing_one_if_none_can_be_started(monkeypatch):
    await asyncio.to_thread(int)
    with monkeypatch.context() as limited:
        exhaust(limited)
        assert await in_daemon_thread(lambda: 7) == 7


def test_work_fails_if_not_even_a_first_thread_can_be_started(monkeypatch):
    exhaust(monkeypatch)
    with SharingExecutor(4) as executor, pytest.raises(RuntimeError, match=NO_THREAD):
        executor.submit(int, "7")
