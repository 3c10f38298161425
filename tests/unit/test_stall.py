"""Stall limits: the limit of the setting, and a shorter one for operations in progress at a network change."""

import asyncio
from collections.abc import Callable

import pytest

from agent.application.sync.stall import StallMonitor, StallTimeout, limit_stalls, stall_timeout
from agent.domain.errors import CloudUploadError


class LoopTime:
    """The time of the running event loop, advanced by the test."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        loop.time = lambda: self.now

    async def advance(self, seconds: float) -> None:
        for part in range(10):
            self.now += seconds / 10
            for _ in range(10 if part == 9 else 2):
                await asyncio.sleep(0)


class StalledWork:
    """An operation that is stalled; calling `progress` reports progress."""

    def __init__(
        self, stall_monitor: StallMonitor, seconds: float = 300, progress_count: Callable[[], int] | None = None
    ) -> None:
        self.progress: Callable[[], None]
        self._started = asyncio.Event()
        self.task = asyncio.create_task(self._stall(stall_monitor, seconds, progress_count))

    async def started(self) -> "StalledWork":
        await self._started.wait()
        return self

    @property
    def ended(self) -> type[BaseException] | None:
        return type(self.task.exception()) if self.task.done() else None

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _stall(
        self, stall_monitor: StallMonitor, seconds: float, progress_count: Callable[[], int] | None
    ) -> None:
        async with limit_stalls(seconds, stall_monitor, progress_count) as self.progress:
            self._started.set()
            await asyncio.Event().wait()


@pytest.fixture
async def stall_monitor():
    return StallMonitor(tight_seconds=10, tight_for_seconds=30)


@pytest.fixture
async def time():
    return LoopTime()


@pytest.fixture
async def work(time, stall_monitor):
    work = await StalledWork(stall_monitor).started()
    yield work
    await work.stop()


async def test_without_a_network_change_the_setting_is_the_limit(time, work):
    await time.advance(299)
    work.progress()
    await time.advance(299)
    assert work.ended is None
    await time.advance(2)
    assert work.ended is TimeoutError


async def test_an_operation_stalled_at_a_network_change_is_cut_off_soon(time, stall_monitor, work):
    await time.advance(5)
    await stall_monitor.tighten()
    await time.advance(9.9)
    assert work.ended is None
    await time.advance(0.2)
    assert work.ended is StallTimeout


async def test_an_operation_with_progress_keeps_running_and_regains_the_full_limit(time, stall_monitor, work):
    await stall_monitor.tighten()
    for _ in range(4):
        await time.advance(9)
        work.progress()
    await time.advance(299)
    assert work.ended is None
    await time.advance(2)
    assert work.ended is TimeoutError


async def test_progress_soon_after_a_network_change_does_not_restore_the_limit(time, stall_monitor, work):
    await stall_monitor.tighten()
    await time.advance(1)
    work.progress()
    await time.advance(9.9)
    assert work.ended is None
    await time.advance(0.2)
    assert work.ended is StallTimeout


async def test_another_network_change_does_not_extend_the_limit(time, stall_monitor, work):
    await stall_monitor.tighten()
    await time.advance(9)
    await stall_monitor.tighten()
    await time.advance(1.1)
    assert work.ended is StallTimeout


async def test_an_operation_started_after_the_network_change_has_the_full_limit(time, stall_monitor):
    await stall_monitor.tighten()
    work = await StalledWork(stall_monitor).started()
    await time.advance(299)
    assert work.ended is None
    await work.stop()


async def test_a_shorter_limit_is_kept(time, stall_monitor):
    work = await StalledWork(stall_monitor, seconds=5).started()
    await stall_monitor.tighten()
    work.progress()
    await time.advance(5.1)
    assert work.ended is not None


async def test_a_growing_progress_count_is_progress_and_a_constant_one_is_not(time, stall_monitor):
    sent = 0
    work = await StalledWork(stall_monitor, progress_count=lambda: sent).started()
    await stall_monitor.tighten()
    for _ in range(8):
        sent += 1
        await time.advance(3)
    assert work.ended is None
    await time.advance(14)
    assert work.ended is StallTimeout


async def test_the_progress_count_is_read_only_after_a_network_change(time, stall_monitor):
    reads = 0

    def progress_count() -> int:
        nonlocal reads
        reads += 1
        return reads

    work = await StalledWork(stall_monitor, progress_count=progress_count).started()
    await time.advance(200)
    assert reads == 0
    await stall_monitor.tighten()
    await time.advance(40)
    seen = reads
    await time.advance(200)
    assert 4 < seen == reads
    await work.stop()


async def test_a_deliberate_pause_is_not_a_stall(time, stall_monitor, work):
    await stall_monitor.tighten()
    for _ in range(4):
        await time.advance(9)
        stall_monitor.restart_limits()
    assert work.ended is None


async def test_an_error_of_the_block_is_raised_unchanged(stall_monitor):
    async def work() -> None:
        async with limit_stalls(300, stall_monitor):
            await stall_monitor.tighten()
            raise TimeoutError("from the block")

    with pytest.raises(TimeoutError, match="from the block") as failure:
        await work()
    assert not isinstance(failure.value, StallTimeout)


async def test_a_cut_off_sync_is_a_transient_error(time, stall_monitor):
    async def work() -> None:
        async with stall_timeout(300, "s3://bucket", CloudUploadError, "cloud", stall_monitor=stall_monitor):
            await stall_monitor.tighten()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await time.advance(10.1)
    error = task.exception()
    assert isinstance(error, CloudUploadError)
    assert isinstance(error.original, StallTimeout)
    assert error.transient
    assert str(error).startswith("s3://bucket: no progress for 10 s")


async def test_only_components_with_a_client_are_reset(stall_monitor):
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


async def test_a_network_change_drops_idle_connections(stall_monitor):
    class Pool:
        drops = 0

        async def drop_idle_connections(self) -> None:
            self.drops += 1

    pools = [Pool(), Pool()]
    for pool in pools:
        stall_monitor.register(pool)
    await stall_monitor.tighten()
    assert [pool.drops for pool in pools] == [1, 1]
