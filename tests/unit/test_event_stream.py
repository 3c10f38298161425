"""What readers of the feed are told, and what they cost."""

import asyncio
from contextlib import aclosing

import pytest

from agent.adapters.memory_bus import MemoryBus
from agent.application.monitoring.event_stream import BATCH, EventStream
from agent.domain.errors import StateError
from agent.domain.events import SyncProgress
from agent.ports import HistoryEntry
from tests.support import values
from tests.support.clock import ManualClock


class History:
    """The part of a ledger that a feed reads; counts how often it is read."""

    def __init__(self) -> None:
        self.entries: list[HistoryEntry] = []
        self.reads = 0
        self.failing: StateError | None = None
        self._listeners = []

    def write(self, count: int = 1, *, event=None) -> None:
        for _ in range(count):
            position = self.entries[-1].position + 1 if self.entries else 1
            self.entries.append(HistoryEntry(position, event or values.request(f"r{position}")))
            for listener in self._listeners:
                listener()

    async def history(self, *, after: int = 0, limit: int = 1000):
        self.reads += 1
        await asyncio.sleep(0)
        if self.failing:
            raise self.failing
        return [entry for entry in self.entries if entry.position > after][:limit]

    async def last_position(self) -> int:
        await asyncio.sleep(0)
        return self.entries[-1].position if self.entries else 0

    def on_history(self, listener) -> None:
        self._listeners.append(listener)


class World:
    def __init__(self) -> None:
        self.ledger, self.bus = History(), MemoryBus(ManualClock())
        self.feed = EventStream(ledger=self.ledger, bus=self.bus, system_id=values.SYSTEM)

    def progress(self, done: int, request: str = "r9") -> SyncProgress:
        return SyncProgress(
            id=f"p{done}", time=values.NOON, system_id=values.SYSTEM, request_id=request, method="cloud",
            phase="upload", done_bytes=done, total_bytes=100,
        )  # fmt: skip

    def reader(self, after: int | None = None) -> "Reader":
        return Reader(self.feed.events(after=after))


class Reader:
    """Reads into `told` (positions, and bytes done as negative numbers) for as long as it lives."""

    def __init__(self, events) -> None:
        self.told: list[int] = []
        self.task = asyncio.create_task(self._read(events))

    async def _read(self, events) -> None:
        async with aclosing(events):
            async for one in events:
                self.told.append(-one.done_bytes if isinstance(one, SyncProgress) else one.position)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def settle(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(wanted) -> None:
    async with asyncio.timeout(60):
        while not wanted():
            await asyncio.sleep(0)


@pytest.fixture
async def world():
    world = World()
    yield world
    await world.bus.aclose()


async def test_a_reader_is_told_the_history_after_its_position_and_then_what_happens(world):
    world.ledger.write(3)
    reader = world.reader(after=1)
    await settle()
    assert reader.told == [2, 3]
    world.ledger.write(2)
    await settle()
    assert reader.told == [2, 3, 4, 5]
    await reader.stop()


async def test_without_a_position_it_is_told_what_happens_from_now_on(world):
    world.ledger.write(3)
    first = world.reader()
    await settle()
    world.ledger.write(250)
    second = world.reader()
    await settle()
    world.ledger.write(1)
    await settle()
    assert (first.told, second.told) == ([*range(4, 255)], [254])
    await first.stop()
    await second.stop()


async def test_five_hundred_readers_cost_one_reading_of_the_ledger_for_each_batch(world):
    readers = [world.reader() for _ in range(500)]
    await settle(2000)
    before = world.ledger.reads
    for batch in range(1, 11):
        world.ledger.write(10)
        await until(lambda told=10 * batch: all(len(reader.told) == told for reader in readers))
        assert world.ledger.reads - before == batch
    assert all(reader.told == [*range(1, 101)] for reader in readers)
    for reader in readers:
        await reader.stop()


async def test_a_burst_of_many_batches_is_read_once_for_all(world):
    readers = [world.reader() for _ in range(50)]
    await settle(500)
    before = world.ledger.reads
    world.ledger.write(10 * BATCH)
    await until(lambda: all(len(reader.told) == 10 * BATCH for reader in readers))
    assert all(reader.told == [*range(1, 10 * BATCH + 1)] for reader in readers)
    assert world.ledger.reads - before <= 12
    for reader in readers:
        await reader.stop()


async def test_a_reader_that_is_slow_gets_everything_in_batches_from_the_ledger(world):
    async with aclosing(world.feed.events(after=0)) as slow:
        quick = world.reader()
        world.ledger.write(1)
        told = [(await anext(slow)).position]
        for _ in range(5):
            world.ledger.write(BATCH)
            await settle()
        assert len(quick.told) >= 5 * BATCH
        while len(told) < 5 * BATCH + 1:
            told.append((await anext(slow)).position)
        assert told == [*range(1, 5 * BATCH + 2)]
        await quick.stop()


async def test_what_the_ledger_has_let_go_is_passed_over(world):
    world.ledger.write(10)
    del world.ledger.entries[:5]
    reader = world.reader(after=1)
    await settle()
    assert reader.told == [6, 7, 8, 9, 10]
    await reader.stop()


async def test_a_position_of_an_earlier_ledger_means_all_of_this_one(world):
    world.ledger.write(3)
    reader = world.reader(after=5000)
    await settle()
    assert reader.told == [1, 2, 3]
    await reader.stop()


async def test_progress_comes_in_between_and_not_after_its_result(world):
    reader = world.reader()
    await settle()
    world.ledger.write()
    await world.bus.publish(world.progress(10))
    await settle()
    await world.bus.publish(world.progress(20))
    await settle()
    world.ledger.write(event=values.skipped("r9"))
    await settle()
    await world.bus.publish(world.progress(30))
    await settle()
    await world.bus.publish(world.progress(5, "r10"))
    await settle()
    assert reader.told == [1, -10, -20, 2, -5]
    await reader.stop()


async def test_progress_is_heard_only_while_somebody_reads(world):
    await world.bus.publish(world.progress(1))
    assert world.bus._mailboxes == []
    readers = [world.reader() for _ in range(3)]
    await settle()
    assert len(world.bus._mailboxes) == 1
    await readers[0].stop()
    assert len(world.bus._mailboxes) == 1
    for reader in readers:
        await reader.stop()
    assert (world.bus._mailboxes, world.feed.readers) == ([], 0)
    again = world.reader()
    await settle()
    await world.bus.publish(world.progress(2))
    await settle()
    assert again.told == [-2]
    await again.stop()


async def test_a_reader_that_does_not_read_keeps_no_progress_back(world):
    async with aclosing(world.feed.events(after=None)) as events:
        waiting = asyncio.create_task(anext(events))
        await settle()
        world.ledger.write()
        await waiting
        for done in range(1, 1001):
            await world.bus.publish(world.progress(done))
        await until(lambda: world.feed._heard == 1000)
        assert (await anext(events)).done_bytes > 900
        assert len(world.feed._progress) <= 16


async def test_nothing_runs_and_nothing_is_read_while_nothing_happens(world):
    readers = [world.reader() for _ in range(5)]
    await settle()
    reads, tasks = world.ledger.reads, len(asyncio.all_tasks())
    waiters = [reader.task.get_stack() for reader in readers]
    await settle()
    assert (world.ledger.reads, len(asyncio.all_tasks())) == (reads, tasks)
    assert all(waiters)
    for reader in readers:
        await reader.stop()


async def test_a_ledger_that_fails_is_the_readers_error_and_the_next_reader_is_served(world):
    reader = world.reader()
    await settle()
    world.ledger.failing = StateError("the disk is gone")
    world.ledger.write()
    await settle()
    with pytest.raises(StateError):
        reader.task.result()
    world.ledger.failing = None
    again = world.reader(after=0)
    await settle()
    assert again.told == [1]
    await again.stop()
