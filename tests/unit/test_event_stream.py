"""What readers of the event stream receive, and how much reading of the ledger they cause."""

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
    """The part of a ledger that an event stream reads; `reads` counts the calls."""

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


class Setup:
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
    """A task that appends to `received`: positions, and bytes done as negative numbers."""

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


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def setup():
    setup = Setup()
    yield setup
    await setup.bus.aclose()


async def test_a_reader_gets_the_history_after_its_position_and_then_new_events(setup):
    setup.ledger.write(3)
    reader = setup.reader(after=1)
    await settle()
    assert reader.received == [2, 3]
    setup.ledger.write(2)
    await settle()
    assert reader.received == [2, 3, 4, 5]
    await reader.stop()


async def test_without_a_position_a_reader_gets_only_new_events(setup):
    setup.ledger.write(3)
    first = setup.reader()
    await settle()
    setup.ledger.write(250)
    second = setup.reader()
    await settle()
    setup.ledger.write(1)
    await settle()
    assert (first.received, second.received) == ([*range(4, 255)], [254])
    await first.stop()
    await second.stop()


async def test_each_of_many_readers_gets_all_events_of_a_long_burst(setup):
    readers = [setup.reader() for _ in range(50)]
    await settle(500)
    setup.ledger.write(10 * BATCH)
    await until(lambda: all(len(reader.received) == 10 * BATCH for reader in readers))
    assert all(reader.received == [*range(1, 10 * BATCH + 1)] for reader in readers)
    for reader in readers:
        await reader.stop()


async def test_an_event_causes_one_read_of_the_ledger_per_reader(setup):
    reader = setup.reader()
    await settle()
    before = setup.ledger.reads
    setup.ledger.write()
    await settle()
    assert (reader.received, setup.ledger.reads - before) == ([1], 1)
    await reader.stop()


async def test_readers_at_the_same_position_share_a_read_and_progress_causes_none(setup):
    readers = [setup.reader() for _ in range(50)]
    await settle(500)
    before = setup.ledger.reads
    setup.ledger.write()
    await settle(500)
    assert ([reader.received for reader in readers], setup.ledger.reads - before) == ([[1]] * 50, 1)
    for done in range(20):
        await setup.bus.publish(setup.progress(done + 1))
        await settle(100)
    assert ({len(reader.received) for reader in readers}, setup.ledger.reads - before) == ({21}, 1)
    for reader in readers:
        await reader.stop()
    assert "event-batch" not in {task.get_name() for task in asyncio.all_tasks()}


@pytest.mark.parametrize("error", [StateError("the disk is gone"), RuntimeError("a defect")])
async def test_a_read_that_failed_is_not_shared_with_later_readers(setup, error):
    setup.ledger.write(2)
    other = setup.reader(after=1)
    await settle()
    setup.ledger.failing = error
    readers = [setup.reader(after=0) for _ in range(3)]
    await settle()
    assert [reader.task.exception() for reader in readers] == [error] * 3
    setup.ledger.failing = None
    again = setup.reader(after=0)
    await settle()
    assert (again.received, other.received) == ([1, 2], [2])
    await again.stop()
    await other.stop()


async def test_events_written_while_a_reader_reads_are_not_missed(setup):
    async with aclosing(setup.stream.events(after=0)) as events:
        setup.ledger.write()
        assert (await anext(events)).position == 1
        setup.ledger.write()
        async with asyncio.timeout(60):
            assert (await anext(events)).position == 2


async def test_a_slow_reader_gets_all_events_in_batches_from_the_ledger(setup):
    async with aclosing(setup.stream.events(after=0)) as slow:
        quick = setup.reader()
        setup.ledger.write(1)
        received = [(await anext(slow)).position]
        for _ in range(5):
            setup.ledger.write(BATCH)
            await settle()
        assert len(quick.received) >= 5 * BATCH
        while len(received) < 5 * BATCH + 1:
            received.append((await anext(slow)).position)
        assert received == [*range(1, 5 * BATCH + 2)]
        await quick.stop()


async def test_deleted_entries_are_skipped(setup):
    setup.ledger.write(10)
    del setup.ledger.entries[:5]
    reader = setup.reader(after=1)
    await settle()
    assert reader.received == [6, 7, 8, 9, 10]
    await reader.stop()


async def test_a_position_past_the_end_returns_the_complete_history(setup):
    setup.ledger.write(3)
    reader = setup.reader(after=5000)
    await settle()
    assert reader.received == [1, 2, 3]
    await reader.stop()


async def test_progress_is_delivered_before_its_result_and_not_after(setup):
    reader = setup.reader()
    await settle()
    setup.ledger.write()
    await setup.bus.publish(setup.progress(10))
    await settle()
    await setup.bus.publish(setup.progress(20))
    await settle()
    setup.ledger.write(event=values.skipped("r9"))
    await settle()
    await setup.bus.publish(setup.progress(30))
    await settle()
    await setup.bus.publish(setup.progress(5, "r10"))
    await settle()
    assert reader.received == [1, -10, -20, 2, -5]
    await reader.stop()


async def test_readers_share_the_subscription_to_progress_and_each_event(setup, monkeypatch):
    subscribed, subscribe = 0, setup.bus.subscribe

    async def counted(*given):
        nonlocal subscribed
        subscribed += 1
        return await subscribe(*given)

    monkeypatch.setattr(setup.bus, "subscribe", counted)
    async with aclosing(setup.stream.events(after=None)) as first, aclosing(setup.stream.events(after=None)) as second:
        waiting = [asyncio.create_task(anext(events)) for events in (first, second)]
        await settle()
        await setup.bus.publish(setup.progress(1))
        one, other = await asyncio.gather(*waiting)
        assert one is other
    assert (subscribed, setup.bus._subscriptions) == (1, {})


async def test_the_history_does_not_wait_for_a_bus_that_is_silent(setup, monkeypatch):
    """A NATS server that is up, but does not answer, delays a subscription."""

    async def silent(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(setup.bus, "subscribe", silent)
    setup.ledger.write()
    reader = setup.reader(after=0)
    await settle()
    assert reader.received == [1]
    await reader.stop()
    assert "event-progress" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_progress_is_subscribed_to_only_while_there_are_readers(setup):
    await setup.bus.publish(setup.progress(1))
    assert setup.bus._subscriptions == {}
    readers = [setup.reader() for _ in range(3)]
    await settle()
    await setup.bus.publish(setup.progress(2))
    await settle()
    assert [reader.received for reader in readers] == [[-2]] * 3
    for reader in readers:
        await reader.stop()
    assert (setup.bus._subscriptions, setup.stream._readers) == ({}, set())
    again = setup.reader()
    await settle()
    await setup.bus.publish(setup.progress(3))
    await settle()
    assert again.received == [-3]
    await again.stop()


async def test_an_idle_reader_keeps_only_the_newest_progress(setup):
    async with aclosing(setup.stream.events(after=None)) as events:
        waiting = asyncio.create_task(anext(events))
        await settle()
        setup.ledger.write()
        await waiting
        for done in range(1, 1001):
            await setup.bus.publish(setup.progress(done))
        await settle(10_000)
        kept = [(await anext(events)).done_bytes for _ in range(PROGRESS_KEPT)]
        assert kept == [*range(1001 - PROGRESS_KEPT, 1001)]


async def test_without_events_no_task_starts_and_the_ledger_is_not_read(setup):
    readers = [setup.reader() for _ in range(5)]
    await settle()
    reads, tasks = setup.ledger.reads, len(asyncio.all_tasks())
    waiters = [reader.task.get_stack() for reader in readers]
    await settle()
    assert (setup.ledger.reads, len(asyncio.all_tasks())) == (reads, tasks)
    assert all(waiters)
    for reader in readers:
        await reader.stop()


async def test_a_ledger_error_ends_its_reader_and_not_the_next_one(setup):
    reader = setup.reader()
    await settle()
    setup.ledger.failing = StateError("the disk is gone")
    setup.ledger.write()
    await settle()
    with pytest.raises(StateError):
        reader.task.result()
    setup.ledger.failing = None
    again = setup.reader(after=0)
    await settle()
    assert again.received == [1]
    await again.stop()
