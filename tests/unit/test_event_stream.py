"""What readers of the event stream get, and what they cost."""

import asyncio
from contextlib import aclosing

import pytest

from agent.adapters.memory_bus import MemoryBus
from agent.application.monitoring.event_stream import BATCH, PROGRESS_KEPT, EventStream
from agent.domain.errors import StateError
from agent.domain.events import SyncProgress
from agent.ports import HistoryEntry
from tests.support import values
from tests.support.clock import ManualClock


class History:
    """The part of a ledger that an event stream reads; counts how often it is read."""

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
        self.stream = EventStream(ledger=self.ledger, bus=self.bus, system_id=values.SYSTEM)

    def progress(self, done: int, request: str = "r9") -> SyncProgress:
        return SyncProgress(
            id=f"p{done}", time=values.NOON, system_id=values.SYSTEM, request_id=request, method="cloud",
            phase="upload", done_bytes=done, total_bytes=100,
        )  # fmt: skip

    def reader(self, after: int | None = None) -> "Reader":
        return Reader(self.stream.events(after=after))


class Reader:
    """Reads into `received` (positions, and bytes done as negative numbers) for as long as it lives."""

    def __init__(self, events) -> None:
        self.received: list[int] = []
        self.task = asyncio.create_task(self._read(events))

    async def _read(self, events) -> None:
        async with aclosing(events):
            async for one in events:
                self.received.append(-one.done_bytes if isinstance(one, SyncProgress) else one.position)

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


async def test_a_reader_gets_the_history_after_its_position_and_then_what_happens(world):
    world.ledger.write(3)
    reader = world.reader(after=1)
    await settle()
    assert reader.received == [2, 3]
    world.ledger.write(2)
    await settle()
    assert reader.received == [2, 3, 4, 5]
    await reader.stop()


async def test_without_a_position_it_gets_what_happens_from_now_on(world):
    world.ledger.write(3)
    first = world.reader()
    await settle()
    world.ledger.write(250)
    second = world.reader()
    await settle()
    world.ledger.write(1)
    await settle()
    assert (first.received, second.received) == ([*range(4, 255)], [254])
    await first.stop()
    await second.stop()


async def test_every_one_of_many_readers_gets_every_event_of_a_burst_that_fills_several_batches(world):
    readers = [world.reader() for _ in range(50)]
    await settle(500)
    world.ledger.write(10 * BATCH)
    await until(lambda: all(len(reader.received) == 10 * BATCH for reader in readers))
    assert all(reader.received == [*range(1, 10 * BATCH + 1)] for reader in readers)
    for reader in readers:
        await reader.stop()


async def test_an_event_costs_a_reader_one_reading_of_the_ledger(world):
    reader = world.reader()
    await settle()
    before = world.ledger.reads
    world.ledger.write()
    await settle()
    assert (reader.received, world.ledger.reads - before) == ([1], 1)
    await reader.stop()


async def test_what_is_written_while_a_reader_reads_is_not_missed(world):
    async with aclosing(world.stream.events(after=0)) as events:
        world.ledger.write()
        assert (await anext(events)).position == 1
        world.ledger.write()
        async with asyncio.timeout(60):
            assert (await anext(events)).position == 2


async def test_a_reader_that_is_slow_gets_everything_in_batches_from_the_ledger(world):
    async with aclosing(world.stream.events(after=0)) as slow:
        quick = world.reader()
        world.ledger.write(1)
        received = [(await anext(slow)).position]
        for _ in range(5):
            world.ledger.write(BATCH)
            await settle()
        assert len(quick.received) >= 5 * BATCH
        while len(received) < 5 * BATCH + 1:
            received.append((await anext(slow)).position)
        assert received == [*range(1, 5 * BATCH + 2)]
        await quick.stop()


async def test_what_the_ledger_has_deleted_is_skipped(world):
    world.ledger.write(10)
    del world.ledger.entries[:5]
    reader = world.reader(after=1)
    await settle()
    assert reader.received == [6, 7, 8, 9, 10]
    await reader.stop()


async def test_a_position_of_an_earlier_ledger_means_all_of_this_one(world):
    world.ledger.write(3)
    reader = world.reader(after=5000)
    await settle()
    assert reader.received == [1, 2, 3]
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
    assert reader.received == [1, -10, -20, 2, -5]
    await reader.stop()


async def test_progress_is_subscribed_to_only_while_somebody_reads(world):
    await world.bus.publish(world.progress(1))
    assert world.bus._mailboxes == []
    readers = [world.reader() for _ in range(3)]
    await settle()
    await world.bus.publish(world.progress(2))
    await settle()
    assert [reader.received for reader in readers] == [[-2]] * 3
    for reader in readers:
        await reader.stop()
    assert (world.bus._mailboxes, world.stream._readers) == ([], set())
    again = world.reader()
    await settle()
    await world.bus.publish(world.progress(3))
    await settle()
    assert again.received == [-3]
    await again.stop()


async def test_a_reader_that_does_not_read_keeps_no_progress_back(world):
    async with aclosing(world.stream.events(after=None)) as events:
        waiting = asyncio.create_task(anext(events))
        await settle()
        world.ledger.write()
        await waiting
        for done in range(1, 1001):
            await world.bus.publish(world.progress(done))
        await settle(10_000)
        kept = [(await anext(events)).done_bytes for _ in range(PROGRESS_KEPT)]
        assert kept == [*range(1001 - PROGRESS_KEPT, 1001)]


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
    assert again.received == [1]
    await again.stop()
