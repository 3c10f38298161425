"""How long something may stand still: as long as the setting says, and less after an upheaval that it was caught in."""

import asyncio
from collections.abc import Callable

import pytest

from agent.application.sync.stall import StallMonitor, StallTimeout, limit_stalls, stall_timeout
from agent.domain.errors import CloudUploadError


class LoopTime:
    """The event loop's time, moved by hand. Kept by the loop of one test."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        loop.time = lambda: self.now

    async def passes(self, seconds: float) -> None:
        for part in range(10):
            self.now += seconds / 10
            for _ in range(10 if part == 9 else 2):
                await asyncio.sleep(0)


class Work:
    """What is under way, and stands still; `moved` is its sign of life."""

    def __init__(
        self, stall_monitor: StallMonitor, seconds: float = 300, progress_count: Callable[[], int] | None = None
    ) -> None:
        self.moved: Callable[[], None]
        self._begun = asyncio.Event()
        self.task = asyncio.create_task(self._stand_still(stall_monitor, seconds, progress_count))

    async def begun(self) -> "Work":
        await self._begun.wait()
        return self

    @property
    def ended(self) -> type[BaseException] | None:
        return type(self.task.exception()) if self.task.done() else None

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _stand_still(
        self, stall_monitor: StallMonitor, seconds: float, progress_count: Callable[[], int] | None
    ) -> None:
        async with limit_stalls(seconds, stall_monitor, progress_count) as self.moved:
            self._begun.set()
            await asyncio.Event().wait()


@pytest.fixture
async def stall_monitor():
    return StallMonitor(tight_seconds=10, tight_for_seconds=30)


@pytest.fixture
async def time():
    return LoopTime()


@pytest.fixture
async def work(time, stall_monitor):
    work = await Work(stall_monitor).begun()
    yield work
    await work.stop()


async def test_in_peace_the_setting_is_the_limit(time, work):
    await time.passes(299)
    work.moved()
    await time.passes(299)
    assert work.ended is None
    await time.passes(2)
    assert work.ended is TimeoutError


async def test_what_stands_still_at_a_network_change_is_cut_off_soon(time, stall_monitor, work):
    await time.passes(5)
    await stall_monitor.tighten()
    await time.passes(9.9)
    assert work.ended is None
    await time.passes(0.2)
    assert work.ended is StallTimeout


async def test_what_moves_is_not_touched_and_has_all_its_time_again_when_the_ground_is_firm(time, stall_monitor, work):
    await stall_monitor.tighten()
    for _ in range(4):
        await time.passes(9)
        work.moved()
    await time.passes(299)
    assert work.ended is None
    await time.passes(2)
    assert work.ended is TimeoutError


async def test_a_last_move_into_a_dead_connections_buffer_does_not_give_the_time_back(time, stall_monitor, work):
    await stall_monitor.tighten()
    await time.passes(1)
    work.moved()
    await time.passes(9.9)
    assert work.ended is None
    await time.passes(0.2)
    assert work.ended is StallTimeout


async def test_another_network_change_gives_no_more_time(time, stall_monitor, work):
    await stall_monitor.tighten()
    await time.passes(9)
    await stall_monitor.tighten()
    await time.passes(1.1)
    assert work.ended is StallTimeout


async def test_what_begins_after_the_network_change_has_all_its_time(time, stall_monitor):
    await stall_monitor.tighten()
    work = await Work(stall_monitor).begun()
    await time.passes(299)
    assert work.ended is None
    await work.stop()


async def test_a_limit_that_is_shorter_stays_as_it_is(time, stall_monitor):
    work = await Work(stall_monitor, seconds=5).begun()
    await stall_monitor.tighten()
    work.moved()
    await time.passes(5.1)
    assert work.ended is not None


async def test_a_figure_that_grows_counts_as_a_move_and_one_that_stops_does_not(time, stall_monitor):
    sent = 0
    work = await Work(stall_monitor, progress_count=lambda: sent).begun()
    await stall_monitor.tighten()
    for _ in range(8):
        sent += 1
        await time.passes(3)
    assert work.ended is None
    await time.passes(14)
    assert work.ended is StallTimeout


async def test_a_figure_is_not_looked_at_in_peace(time, stall_monitor):
    looks = 0

    def progress_count() -> int:
        nonlocal looks
        looks += 1
        return looks

    work = await Work(stall_monitor, progress_count=progress_count).begun()
    await time.passes(200)
    assert looks == 0
    await stall_monitor.tighten()
    await time.passes(40)
    seen = looks
    await time.passes(200)
    assert 4 < seen == looks
    await work.stop()


async def test_who_stands_still_on_purpose_is_not_ended_for_that(time, stall_monitor, work):
    await stall_monitor.tighten()
    for _ in range(4):
        await time.passes(9)
        stall_monitor.restart_limits()
    assert work.ended is None


async def test_a_failure_of_the_block_is_its_own(stall_monitor):
    async def work() -> None:
        async with limit_stalls(300, stall_monitor):
            await stall_monitor.tighten()
            raise TimeoutError("the block's")

    with pytest.raises(TimeoutError, match="the block's") as failure:
        await work()
    assert not isinstance(failure.value, StallTimeout)


async def test_being_cut_off_is_a_passing_failure_that_says_so(time, stall_monitor):
    async def work() -> None:
        async with stall_timeout(300, "s3://bucket", CloudUploadError, "cloud", stall_monitor=stall_monitor):
            await stall_monitor.tighten()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await time.passes(10.1)
    error = task.exception()
    assert isinstance(error, CloudUploadError)
    assert isinstance(error.original, StallTimeout)
    assert error.transient
    assert str(error).startswith("s3://bucket: no progress for 10 s")


async def test_clients_are_reset_where_a_component_keeps_one(stall_monitor):
    class Pool:
        async def drop_idle_connections(self) -> None:
            raise AssertionError

    class Client(Pool):
        resets = 0

        async def reset_client(self) -> None:
            self.resets += 1

    client = Client()
    for connected in (Pool(), client):
        stall_monitor.register(connected)
    await stall_monitor.reset_clients()
    assert client.resets == 1


async def test_a_network_change_releases_connections(stall_monitor):
    class Pool:
        let_go_of = 0

        async def drop_idle_connections(self) -> None:
            self.let_go_of += 1

    pools = [Pool(), Pool()]
    for pool in pools:
        stall_monitor.register(pool)
    await stall_monitor.tighten()
    assert [pool.let_go_of for pool in pools] == [1, 1]
