"""What is done when the bus changes: who is told, what is told again, and what the ledger notes for people."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.status_warnings import warnings_in
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import BusError
from agent.domain.events import Event
from agent.ports import BusState, StreamMark
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.ledger import inline_ledger

KEPT = timedelta(days=7)
NATS = BusState("nats", ready=True, detail="nats://example.org", since=values.NOON)
WAITING = BusState("nats", ready=False, detail="no answer", since=values.NOON + timedelta(seconds=1))
LOCAL = BusState("memory", ready=True, detail="in this process: no answer", since=values.NOON + timedelta(seconds=2))
AGES = {"today": timedelta(), "yesterday": timedelta(days=1), "kept-no-more": KEPT + timedelta(seconds=1)}


class Bus:
    """A bus whose state and stream a test sets."""

    def __init__(self, stream: StreamMark | None) -> None:
        self.state, self.stream = NATS, stream
        self.recorded: list[str] = []
        self.error: BusError | None = None
        self.attempts = 0
        self.before_the_answer: Callable[[], Awaitable[None]] | None = None
        self._listeners = []

    def on_change(self, listener) -> None:
        self._listeners.append(listener)

    def becomes(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.state, self.stream = state, stream
        for listener in self._listeners:
            listener()

    async def publish(self, event: Event) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.recorded.append(event.request_id)
        if self.stream is not None:
            self.stream = StreamMark(self.stream.created, self.stream.sequence + 1)
        before, self.before_the_answer = self.before_the_answer, None
        if before is not None:
            await before()


@dataclass
class World:
    clock: ManualClock
    ledger: SqliteLedger
    bus: Bus
    recorder: ResultRecorder
    switches: list[BusState] = field(default_factory=list)
    hold: asyncio.Event | None = None
    switch_errors: list[BusError] = field(default_factory=list)

    async def result(self, name: str) -> None:
        """A sync has come to its outcome."""
        await self.ledger.settle(None, values.skipped(name, time=values.NOON))
        self.recorder.flush_soon()
        await until_idle()

    async def switched(self) -> None:
        self.switches.append(self.bus.state)
        if self.switch_errors:
            raise self.switch_errors.pop()
        if self.hold:
            await self.hold.wait()

    async def becomes(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.bus.becomes(state, stream)
        await until_idle()

    def recorded(self) -> list[str]:
        """What was told since this was last asked."""
        recorded, self.bus.recorded = self.bus.recorded, []
        return recorded

    async def notes(self) -> tuple[str | None, ...]:
        notes = await self.ledger.notes()
        return tuple(notes.get(key) for key in ("bus", "bus_since", "stream"))


@asynccontextmanager
async def world(tmp_path, stream: StreamMark | None = None, *, state: BusState = NATS):
    """A life of the agent, in which one result of each age has been told in an earlier one."""
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock, tmp_path / "ledger")
    if not await ledger.last_position():
        for name, age in AGES.items():
            result = values.skipped(name, time=values.NOON - age)
            await ledger.settle(None, result)
            await ledger.confirm(result)
    bus = Bus(stream)
    bus.state = state
    recorder = ResultRecorder(ledger, bus, clock)
    w = World(clock, ledger, bus, recorder)
    watch = BusRecovery(bus=bus, ledger=ledger, recorder=recorder, clock=clock, max_age=KEPT, switched=w.switched)
    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(recorder.run())]
    await until_idle()
    try:
        yield w
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.aclose()


async def test_a_stream_that_never_heard_of_us_is_reported_the_results_of_the_kept_days_once(tmp_path):
    async with world(tmp_path, StreamMark("a", 0)) as w:
        assert w.recorded() == ["today", "yesterday"]
        assert await w.notes() == ("nats: nats://example.org", values.NOON.isoformat(), "2 a")
        w.bus.becomes(NATS, w.bus.stream)
        await until_idle()
        assert w.recorded() == []


async def test_a_stream_that_is_new_or_was_cut_is_reported_again_and_one_that_went_on_is_not(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()
        for stream, recorded in {
            StreamMark("a", 12): [],
            StreamMark("a", 500): [],
            StreamMark("a", 499): ["today", "yesterday"],
            StreamMark("b", 501): ["today", "yesterday"],
            StreamMark("b", 503): [],
            StreamMark("b", 504): [],
        }.items():
            await w.becomes(NATS, stream)
            assert w.recorded() == recorded, stream


async def test_a_stream_that_was_out_of_reach_and_is_the_same_is_reported_nothing(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()
        await w.becomes(WAITING)
        assert (await w.notes())[2] == "12 a"
        await w.becomes(NATS, StreamMark("a", 12))
        assert w.recorded() == []


async def test_the_mark_is_known_in_the_next_life(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)):
        pass
    async with world(tmp_path, StreamMark("a", 12)) as w:
        assert w.recorded() == []
    async with world(tmp_path, StreamMark("a", 11)) as w:
        assert w.recorded() == ["today", "yesterday"]


async def test_a_mark_that_makes_no_sense_is_no_mark(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        await w.ledger.note("stream", "x y")
    async with world(tmp_path, StreamMark("a", 12)) as w:
        assert w.recorded() == ["today", "yesterday"]


async def test_without_a_stream_nothing_is_reported_again(tmp_path):
    async with world(tmp_path, None, state=LOCAL) as w:
        assert w.recorded() == []
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
        assert named == [("bus_in_use", "info"), ("bus_unavailable", "warning"), ("bus_in_use", "info")]


async def test_a_change_that_comes_while_the_last_one_is_dealt_with_is_dealt_with_after_it(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.hold = asyncio.Event()
        await w.becomes(LOCAL)
        await w.becomes(NATS, StreamMark("a", 12))
        assert w.switches == [LOCAL]
        w.hold.set()
        await until_idle()
        assert w.switches == [LOCAL, NATS]


async def test_a_result_whose_stream_is_lost_while_the_bus_answers_is_reported_again(tmp_path):
    """The answer is about the stream before: confirmed after the loss was dealt with, the result would be in none."""
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()

        async def lose_the_stream() -> None:
            await w.becomes(NATS, StreamMark("b", 0))

        w.bus.before_the_answer = lose_the_stream
        await w.result("new")
        await until_idle()
        assert w.recorded() == ["new", "today", "yesterday", "new"]
        assert await w.ledger.outbox() == []


async def test_a_stream_that_loses_its_newest_event_while_it_is_out_of_reach_is_reported_again(tmp_path):
    """The connection is lost with the answer, before anything could be noted."""
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()

        async def lose_the_connection() -> None:
            w.bus.state = WAITING

        w.bus.before_the_answer = lose_the_connection
        await w.result("new")
        await w.becomes(NATS, StreamMark("a", 12))
        assert sorted(w.recorded()) == ["new", "new", "today", "yesterday"]


async def test_a_loss_that_is_made_good_by_others_events_before_it_is_dealt_with_is_reported_again(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()
        w.bus.becomes(NATS, StreamMark("a", 11))
        await w.becomes(NATS, StreamMark("a", 90))
        assert w.recorded() == ["today", "yesterday"]
        await w.becomes(NATS, StreamMark("a", 95))
        assert w.recorded() == []


async def test_results_are_reported_at_once_when_the_bus_is_back_whatever_else_its_change_brings(tmp_path):
    """No time passes here: neither the doubled wait nor what is done for requests holds the results up."""
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()
        w.bus.error = BusError("no answer", transient=True)
        await w.becomes(WAITING, w.bus.stream)
        await w.result("new")
        for seconds in (1, 2, 4, 8):
            await w.clock.advance(seconds)
            await until_idle()
        attempts = w.bus.attempts
        await until_idle()
        assert w.bus.attempts == attempts, "a bus that is away is not asked without a pause"
        w.hold = asyncio.Event()
        await w.becomes(LOCAL, w.bus.stream)
        w.bus.error = None
        await w.becomes(NATS, w.bus.stream)
        assert w.recorded() == ["new"]
        assert w.switches == [WAITING, LOCAL], "what the change brings is still under way"


async def test_an_error_while_a_change_is_dealt_with_is_logged_and_the_change_is_dealt_with_after_a_pause(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        w.recorded()
        w.switch_errors = [BusError("no answer", transient=True)] * 2
        with capture_logs() as logs:
            await w.becomes(LOCAL, w.bus.stream)
        interrupted = [line for line in logs if line["event"] == "bus_recovery_interrupted"]
        assert [(line["error"], line["delay_seconds"]) for line in interrupted] == [("no answer", 1)]
        await w.becomes(LOCAL, StreamMark("b", 0))
        assert w.recorded() == ["today", "yesterday"], "a loss is dealt with all the same"
        await w.clock.advance(1)
        await until_idle()
        assert w.switches == [LOCAL] * 3
        await w.clock.advance(60)
        await until_idle()
        assert w.switches == [LOCAL] * 3


async def test_an_unknown_error_that_comes_again_is_a_warning_in_the_status_until_results_are_reported(tmp_path):
    async with world(tmp_path, StreamMark("a", 10)) as w:
        error = BusError("publishing e-1: an answer that makes no sense (KeyError)", hint="see the log", transient=True)
        error.unexpected = "KeyError in publishing"
        w.bus.error = error
        await w.result("new")
        assert warnings_in(await w.ledger.notes()) == ()
        await w.clock.advance(1)
        await until_idle()
        (warning,) = warnings_in(await w.ledger.notes())
        assert (warning.code, warning.hint) == ("bus_unexpected_error", "see the log")
        assert "an answer that makes no sense (KeyError)" in warning.message
        w.bus.error = None
        await w.becomes(NATS, w.bus.stream)
        assert warnings_in(await w.ledger.notes()) == ()
