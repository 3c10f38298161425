"""What is done when the bus changes: who is told, what is told again, and what the ledger notes for people."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.application.bus_watch import BusWatch
from agent.application.recorder import Recorder
from agent.domain.events import Event
from agent.ports import BusState, StreamMark
from tests.fakes import values
from tests.fakes.clock import ManualClock

KEPT = timedelta(days=7)
NATS = BusState("nats", ready=True, detail="nats://example.org", since=values.NOON)
WAITING = BusState("nats", ready=False, detail="no answer", since=values.NOON + timedelta(seconds=1))
LOCAL = BusState("memory", ready=True, detail="in this process: no answer", since=values.NOON + timedelta(seconds=2))
AGES = {"today": timedelta(), "yesterday": timedelta(days=1), "kept-no-more": KEPT + timedelta(seconds=1)}


class Bus:
    """A bus whose state and stream a test sets."""

    def __init__(self, stream: StreamMark | None) -> None:
        self.state, self.stream = NATS, stream
        self.told: list[str] = []
        self._listeners = []

    def on_change(self, listener) -> None:
        self._listeners.append(listener)

    def becomes(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.state, self.stream = state, stream
        for listener in self._listeners:
            listener()

    async def publish(self, event: Event) -> None:
        self.told.append(event.request_id)
        if self.stream is not None:
            self.stream = StreamMark(self.stream.created, self.stream.sequence + 1)


@dataclass
class World:
    clock: ManualClock
    ledger: SqliteLedger
    bus: Bus
    recorder: Recorder
    switches: list[BusState] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def switched(self) -> None:
        self.switches.append(self.bus.state)
        if self.hold:
            await self.hold.wait()

    async def settle(self) -> None:
        """Let everything that can happen at this time happen: each turn sees one piece of the ledger's work done."""
        for _ in range(20):
            await self.ledger.last_position()
            for _ in range(10):
                await asyncio.sleep(0)

    async def becomes(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.bus.becomes(state, stream)
        await self.settle()

    def told(self) -> list[str]:
        """What was told since this was last asked."""
        told, self.bus.told = self.bus.told, []
        return told

    async def notes(self) -> tuple[str | None, ...]:
        notes = await self.ledger.notes()
        return tuple(notes.get(key) for key in ("bus", "bus_since", "stream"))


@asynccontextmanager
async def world(tmp_path, stream: StreamMark | None = None, *, state: BusState = NATS):
    """A life of the agent, in which one result of each age has been told in an earlier one."""
    clock = ManualClock(values.NOON)
    ledger = await SqliteLedger.open(tmp_path / "ledger", CloudEventsCodec(), clock=clock)
    if not await ledger.last_position():
        for name, age in AGES.items():
            result = values.skipped(name, time=values.NOON - age)
            await ledger.settle(None, result)
            await ledger.confirm(result)
    bus = Bus(stream)
    bus.state = state
    recorder = Recorder(ledger, bus, clock)
    w = World(clock, ledger, bus, recorder)
    watch = BusWatch(bus=bus, ledger=ledger, recorder=recorder, clock=clock, kept=KEPT, switched=w.switched)
    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(recorder.run())]
    await w.settle()
    try:
        yield w
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.aclose()


async def test_a_stream_that_never_heard_of_us_is_told_the_results_of_the_kept_days_once(tmp_path):
    async with world(tmp_path, StreamMark("a", 0)) as w:
        assert w.told() == ["today", "yesterday"]
        assert await w.notes() == ("nats: nats://example.org", values.NOON.isoformat(), "2 a")
        w.bus.becomes(NATS, w.bus.stream)
        await w.settle()
        assert w.told() == []


async def test_a_stream_that_is_new_or_was_cut_is_told_again_and_one_that_went_on_is_not(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.told()
        for stream, told in {
            StreamMark("a", 12): [],
            StreamMark("a", 500): [],
            StreamMark("a", 499): ["today", "yesterday"],
            StreamMark("b", 501): ["today", "yesterday"],
            StreamMark("b", 503): [],
            StreamMark("b", 504): [],
        }.items():
            await w.becomes(NATS, stream)
            assert w.told() == told, stream


async def test_a_stream_that_was_out_of_reach_and_is_the_same_is_told_nothing(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.told()
        await w.becomes(WAITING)
        assert (await w.notes())[2] == "12 a"
        await w.becomes(NATS, StreamMark("a", 12))
        assert w.told() == []


async def test_the_mark_is_known_in_the_next_life(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)):
        pass
    async with world(tmp_path, StreamMark("a", 12)) as w:
        assert w.told() == []
    async with world(tmp_path, StreamMark("a", 11)) as w:
        assert w.told() == ["today", "yesterday"]


async def test_a_mark_that_makes_no_sense_is_no_mark(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        await w.ledger.note("stream", "x y")
    async with world(tmp_path, StreamMark("a", 12)) as w:
        assert w.told() == ["today", "yesterday"]


async def test_without_a_stream_nothing_is_told_again(tmp_path):
    async with world(tmp_path, None, state=LOCAL) as w:
        assert w.told() == []
        assert await w.notes() == (f"memory: {LOCAL.detail}", LOCAL.since.isoformat(), None)


async def test_the_notes_say_which_bus_is_in_use_or_what_is_waited_for_and_since_when(tmp_path):
    async with world(tmp_path, None, state=LOCAL) as w:
        await w.becomes(WAITING)
        assert (await w.notes())[:2] == ("waiting: no answer", WAITING.since.isoformat())
        await w.becomes(NATS)
        assert (await w.notes())[:2] == ("nats: nats://example.org", NATS.since.isoformat())


async def test_what_is_to_be_done_when_the_bus_changes_is_done_then_and_only_then(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        assert w.switches == [], "the first bus is no change"
        with capture_logs() as logs:
            await w.becomes(LOCAL)
            await w.becomes(LOCAL)
            another_detail = BusState("memory", ready=True, detail="in this process: refused", since=LOCAL.since)
            await w.becomes(another_detail)
            assert (await w.notes())[0] == f"memory: {another_detail.detail}"
            await w.becomes(WAITING)
            await w.becomes(NATS, StreamMark("a", 12))
            await w.becomes(NATS, StreamMark("b", 0))
        assert w.switches == [LOCAL, WAITING, NATS]
        named = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("bus_")]
        assert named == [("bus_in_use", "info"), ("bus_waits", "warning"), ("bus_in_use", "info")]


async def test_a_change_that_comes_while_the_last_one_is_dealt_with_is_dealt_with_after_it(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.hold = asyncio.Event()
        await w.becomes(LOCAL)
        await w.becomes(NATS, StreamMark("a", 12))
        assert w.switches == [LOCAL]
        w.hold.set()
        await w.settle()
        assert w.switches == [LOCAL, NATS]
