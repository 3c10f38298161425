"""What the agent does when the bus changes: which results it publishes again, and what it notes in the ledger."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.status_warnings import warnings_in
from agent.application.sync.bus_recovery import CHECK_SECONDS, BusRecovery
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import BusError
from agent.domain.events import Event
from agent.ports import BusState, StoredEvent, StreamMark
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.ledger import inline_ledger

KEPT = timedelta(days=7)
NATS = BusState("nats", ready=True, detail="nats://example.org", since=values.NOON)
WAITING = BusState("nats", ready=False, detail="no answer", since=values.NOON + timedelta(seconds=1))
LOCAL = BusState("memory", ready=True, detail="in this process: no answer", since=values.NOON + timedelta(seconds=2))
AGES = {"today": timedelta(), "yesterday": timedelta(days=1), "kept-no-more": KEPT + timedelta(seconds=1)}


class Bus:
    """A bus with a state and a stream mark that the test sets."""

    def __init__(self, stream: StreamMark | None) -> None:
        self.state, self.stream = NATS, stream
        self.published: list[str] = []
        self.error: BusError | None = None
        self.attempts, self.reports_refusals = 0, False
        self.before_confirming: Callable[[], Awaitable[None]] | None = None
        self.removed: list[str] = []
        self.checks = 0
        self.stored: dict[str, StoredEvent] = {}
        self._listeners = []

    def on_change(self, listener) -> None:
        self._listeners.append(listener)

    def switch_to(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.state, self.stream = state, stream
        for listener in self._listeners:
            listener()

    def check_connection(self) -> None:
        self.checks += 1

    async def newest(self, subject: str) -> StoredEvent | None:
        return self.stored.get(subject)

    async def remove_consumer(self, durable: str) -> None:
        self.removed.append(durable)

    async def publish(self, event: Event) -> None:
        self.attempts += 1
        if self.error is not None:
            if self.reports_refusals:
                self.switch_to(self.state, self.stream)
            raise self.error
        self.published.append(event.request_id)
        self.stored[event.subject] = StoredEvent(event, "1")
        if self.stream is not None:
            self.stream = StreamMark(self.stream.created, self.stream.sequence + 1)
        before, self.before_confirming = self.before_confirming, None
        if before is not None:
            await before()


@dataclass
class AgentRun:
    clock: ManualClock
    ledger: SqliteLedger
    bus: Bus
    recorder: ResultRecorder
    switches: list[BusState] = field(default_factory=list)
    blocker: asyncio.Event | None = None
    switch_errors: list[BusError] = field(default_factory=list)
    catch_ups: int = 0
    catch_up_error: BusError | None = None

    async def result(self, name: str) -> None:
        """Record the result of a sync."""
        await self.ledger.settle(None, values.skipped(name, time=values.NOON))
        self.recorder.flush_soon()
        await until_idle()

    async def catch_up(self) -> None:
        self.catch_ups += 1
        if self.catch_up_error:
            raise self.catch_up_error

    async def switched(self) -> None:
        self.switches.append(self.bus.state)
        if self.switch_errors:
            raise self.switch_errors.pop()
        if self.blocker:
            await self.blocker.wait()

    async def switch_to(self, state: BusState, stream: StreamMark | None = None) -> None:
        self.bus.switch_to(state, stream)
        await until_idle()

    def take_published(self) -> list[str]:
        """Return the requests whose results were published since the last call."""
        published, self.bus.published = self.bus.published, []
        return published

    async def notes(self) -> tuple[str | None, ...]:
        notes = await self.ledger.notes()
        return tuple(notes.get(key) for key in ("bus", "bus_since", "stream"))


@asynccontextmanager
async def agent_run(
    tmp_path,
    stream: StreamMark | None = None,
    *,
    state: BusState = NATS,
    results_bus: Bus | None = None,
    catch_up_error: BusError | None = None,
):
    """A run of the agent. An earlier run has published one result of each age. By default, one bus is both buses."""
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
    w = AgentRun(clock, ledger, bus, recorder, catch_up_error=catch_up_error)
    watch = BusRecovery(
        bus=bus, results_bus=results_bus or bus, ledger=ledger, recorder=recorder, clock=clock, max_age=KEPT,
        catch_up=w.catch_up, switched=w.switched, old_consumers=["mac-ab-cloud"],
    )  # fmt: skip
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


async def test_an_unknown_stream_gets_the_results_of_the_retention_time_once(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 0)) as w:
        assert w.take_published() == ["today", "yesterday"]
        assert await w.notes() == ("nats: nats://example.org", values.NOON.isoformat(), "2 a")
        w.bus.switch_to(NATS, w.bus.stream)
        await until_idle()
        assert w.take_published() == []


async def test_a_new_or_truncated_stream_gets_the_results_again_and_a_longer_one_does_not(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        for stream, published in {
            StreamMark("a", 12): [],
            StreamMark("a", 500): [],
            StreamMark("a", 499): ["today", "yesterday"],
            StreamMark("b", 501): ["today", "yesterday"],
            StreamMark("b", 503): [],
            StreamMark("b", 504): [],
        }.items():
            await w.switch_to(NATS, stream)
            assert w.take_published() == published, stream


async def test_the_same_stream_after_an_outage_gets_nothing_again(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        await w.switch_to(WAITING)
        assert (await w.notes())[2] == "12 a"
        await w.switch_to(NATS, StreamMark("a", 12))
        assert w.take_published() == []


async def test_the_stream_mark_is_kept_across_restarts(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)):
        pass
    async with agent_run(tmp_path, StreamMark("a", 12)) as w:
        assert w.take_published() == []
    async with agent_run(tmp_path, StreamMark("a", 11)) as w:
        assert w.take_published() == ["today", "yesterday"]


async def test_an_invalid_stream_mark_is_ignored(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        await w.ledger.note("stream", "x y")
    async with agent_run(tmp_path, StreamMark("a", 12)) as w:
        assert w.take_published() == ["today", "yesterday"]


async def test_without_a_stream_nothing_is_published_again(tmp_path):
    async with agent_run(tmp_path, None, state=LOCAL) as w:
        assert w.take_published() == []
        assert await w.notes() == (f"memory: {LOCAL.detail}", LOCAL.since.isoformat(), None)


async def test_the_notes_name_the_bus_in_use_or_the_outage_and_since_when(tmp_path):
    async with agent_run(tmp_path, None, state=LOCAL) as w:
        await w.switch_to(WAITING)
        assert (await w.notes())[:2] == ("waiting: no answer", WAITING.since.isoformat())
        await w.switch_to(NATS)
        assert (await w.notes())[:2] == ("nats: nats://example.org", NATS.since.isoformat())


async def test_the_switch_callback_runs_once_for_each_change_of_the_bus(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        assert w.switches == [], "the first bus is not a change"
        with capture_logs() as logs:
            await w.switch_to(LOCAL)
            await w.switch_to(LOCAL)
            another_detail = BusState("memory", ready=True, detail="in this process: refused", since=LOCAL.since)
            await w.switch_to(another_detail)
            assert (await w.notes())[0] == f"memory: {another_detail.detail}"
            await w.switch_to(WAITING)
            await w.switch_to(NATS, StreamMark("a", 12))
            await w.switch_to(NATS, StreamMark("b", 0))
        assert w.switches == [LOCAL, WAITING, NATS]
        named = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("bus_")]
        assert named == [("bus_in_use", "info"), ("bus_unavailable", "warning"), ("bus_in_use", "info")]


async def test_a_change_during_the_switch_callback_is_handled_after_it(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.blocker = asyncio.Event()
        await w.switch_to(LOCAL)
        await w.switch_to(NATS, StreamMark("a", 12))
        assert w.switches == [LOCAL]
        w.blocker.set()
        await until_idle()
        assert w.switches == [LOCAL, NATS]


async def test_a_result_is_published_again_if_its_stream_is_lost_during_the_confirmation(tmp_path):
    """The confirmation refers to the lost stream. If it counted, the new stream would never get the result."""
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()

        async def lose_the_stream() -> None:
            await w.switch_to(NATS, StreamMark("b", 0))

        w.bus.before_confirming = lose_the_stream
        await w.result("new")
        await until_idle()
        assert w.take_published() == ["new", "today", "yesterday", "new"]
        assert await w.ledger.outbox() == []


async def test_a_stream_that_loses_its_newest_event_during_an_outage_gets_the_results_again(tmp_path):
    """The connection drops with the confirmation, before the agent could note the new mark."""
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()

        async def lose_the_connection() -> None:
            w.bus.state = WAITING

        w.bus.before_confirming = lose_the_connection
        await w.result("new")
        await w.switch_to(NATS, StreamMark("a", 12))
        assert sorted(w.take_published()) == ["new", "new", "today", "yesterday"]


async def test_a_truncated_stream_that_has_grown_again_still_gets_the_results_again(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        w.bus.switch_to(NATS, StreamMark("a", 11))
        await w.switch_to(NATS, StreamMark("a", 90))
        assert w.take_published() == ["today", "yesterday"]
        await w.switch_to(NATS, StreamMark("a", 95))
        assert w.take_published() == []


async def test_results_are_published_within_a_second_when_the_bus_is_back(tmp_path):
    """At most the first second of the back-off passes; the switch callback does not delay the results."""
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        w.bus.error = BusError("no answer", transient=True)
        await w.switch_to(WAITING, w.bus.stream)
        await w.result("new")
        for seconds in (1, 2, 4, 8):
            await w.clock.advance(seconds)
            await until_idle()
        attempts = w.bus.attempts
        await until_idle()
        assert w.bus.attempts == attempts, "an unavailable bus is not tried without a pause"
        w.blocker = asyncio.Event()
        await w.switch_to(LOCAL, w.bus.stream)
        w.bus.error = None
        await w.switch_to(NATS, w.bus.stream)
        await w.clock.advance(1)
        await until_idle()
        assert w.take_published() == ["new"]
        assert w.switches == [WAITING, LOCAL], "the switch callback is still running"


async def test_a_bus_that_reports_a_change_with_each_refusal_is_tried_once_a_second(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        w.bus.error, w.bus.reports_refusals = BusError("the stream does not exist", transient=True), True
        w.bus.attempts = 0
        await w.result("new")
        assert w.bus.attempts == 1
        for seconds in (1, 1, 1):
            await w.clock.advance(seconds)
            await until_idle()
        assert w.bus.attempts == 4


async def test_an_error_in_the_switch_callback_is_logged_and_retried_after_a_pause(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.take_published()
        w.switch_errors = [BusError("no answer", transient=True)] * 2
        with capture_logs() as logs:
            await w.switch_to(LOCAL, w.bus.stream)
        interrupted = [line for line in logs if line["event"] == "bus_recovery_interrupted"]
        assert [(line["error"], line["delay_seconds"]) for line in interrupted] == [("no answer", 1)]
        await w.switch_to(LOCAL, StreamMark("b", 0))
        assert w.take_published() == ["today", "yesterday"], "a lost stream is handled all the same"
        await w.clock.advance(1)
        await until_idle()
        assert w.switches == [LOCAL] * 3
        await w.clock.advance(60)
        await until_idle()
        assert w.switches == [LOCAL] * 3


async def test_a_repeated_unexpected_error_is_a_status_warning_until_a_publish_succeeds(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
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
        await w.switch_to(NATS, w.bus.stream)
        await w.clock.advance(1)
        await until_idle()
        assert warnings_in(await w.ledger.notes()) == ()


RECONNECTED = replace(NATS, since=NATS.since + timedelta(seconds=9))


async def test_each_connection_the_first_included_is_caught_up_with_once(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        assert (w.catch_ups, w.switches) == (1, [])
        await w.switch_to(NATS, StreamMark("a", 13))
        assert w.catch_ups == 1
        await w.switch_to(WAITING)
        assert w.catch_ups == 1, "there is nothing to read from"
        await w.switch_to(RECONNECTED, StreamMark("a", 14))
        assert (w.catch_ups, w.switches) == (2, [WAITING, RECONNECTED])


async def test_a_connection_lost_and_made_again_between_two_looks_counts(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        await w.switch_to(RECONNECTED, StreamMark("a", 12))
        assert (w.catch_ups, w.switches) == (2, [RECONNECTED])


@pytest.mark.parametrize("error", [None, BusError("the stream has no allow_direct", transient=True)])
async def test_the_consumers_of_earlier_versions_are_removed_once(tmp_path, error):
    async with agent_run(tmp_path, StreamMark("a", 10), catch_up_error=error) as w:
        assert w.bus.removed == ["mac-ab-cloud"]
    async with agent_run(tmp_path, StreamMark("a", 12)) as w:
        assert w.bus.removed == []


async def test_a_stream_whose_age_is_unknown_is_lost_if_its_sequence_goes_back(tmp_path):
    async with agent_run(tmp_path, StreamMark("", 10)):
        pass
    async with agent_run(tmp_path, StreamMark("", 12)) as w:
        assert w.take_published() == []
        await w.switch_to(NATS, StreamMark("", 1))
        assert w.take_published() == ["today", "yesterday"]


async def test_a_stream_whose_age_is_unknown_is_lost_if_the_newest_result_is_missing(tmp_path):
    """The sequence does not show it, if events of other agents are in the new stream."""
    async with agent_run(tmp_path, StreamMark("", 10)) as w:
        await w.result("new")
        w.take_published()
        await w.switch_to(RECONNECTED, w.bus.stream)
        assert w.take_published() == []
        w.bus.stored.clear()
        await w.switch_to(NATS, StreamMark("", 90))
        assert w.take_published() == ["today", "yesterday", "new"]
        w.bus.stored.clear()
        await w.switch_to(RECONNECTED, StreamMark("", 99))
        assert w.take_published() == [], "the limits of the stream may have deleted it"
        await w.clock.advance(CHECK_SECONDS * 24)
        await until_idle()
        assert w.take_published() == ["today", "yesterday", "new"], "once a day"


async def test_a_stream_that_is_replaced_while_nothing_happens_is_noticed_within_the_hour(tmp_path):
    async with agent_run(tmp_path, StreamMark("", 10)) as w:
        await w.result("new")
        w.take_published()
        catch_ups, checks = w.catch_ups, w.bus.checks
        w.bus.stored.clear()
        await w.clock.advance(CHECK_SECONDS)
        await until_idle()
        assert w.take_published() == ["today", "yesterday", "new"]
        assert (w.catch_ups, w.bus.checks) == (catch_ups + 1, checks + 1)
        await w.clock.advance(CHECK_SECONDS - 1)
        assert w.bus.checks == checks + 1


async def test_a_later_result_of_another_agent_with_the_same_id_is_no_loss(tmp_path):
    async with agent_run(tmp_path, StreamMark("", 10)) as w:
        await w.result("new")
        w.take_published()
        (subject,) = w.bus.stored
        foreign = values.skipped("foreign", time=values.NOON + timedelta(seconds=1))
        w.bus.stored[subject] = StoredEvent(foreign, "2")
        await w.switch_to(RECONNECTED, w.bus.stream)
        assert w.take_published() == []


async def test_without_a_server_results_are_not_published_again_at_each_start(tmp_path):
    async with agent_run(tmp_path, None, state=LOCAL) as w:
        await w.result("new")
    async with agent_run(tmp_path, None, state=LOCAL) as w:
        assert w.take_published() == []


async def test_a_result_that_is_stored_but_was_not_confirmed_does_not_hide_the_stream(tmp_path):
    async with agent_run(tmp_path, StreamMark("", 10)) as w:
        w.take_published()
        w.bus.error = BusError("no answer", transient=True)
        await w.result("new")
        (unconfirmed,) = await w.ledger.outbox()
        w.bus.stored[unconfirmed.subject] = StoredEvent(unconfirmed, "1")
        await w.switch_to(RECONNECTED, StreamMark("", 12))
        assert await w.ledger.outbox() == [unconfirmed]


async def test_a_stream_that_seems_to_work_but_cannot_be_read_is_read_ten_times(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.catch_up_error = BusError("JetStream does not answer", transient=True)
        with capture_logs() as logs:
            await w.switch_to(RECONNECTED, w.bus.stream)
            for _ in range(20):
                await w.clock.advance(60)
                await until_idle()
        assert w.catch_ups == 1 + 10
        assert not [line for line in logs if line["log_level"] == "warning"]


async def test_a_stream_that_may_not_be_read_is_read_once(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.catch_up_error = BusError("permissions violation")
        await w.switch_to(RECONNECTED, w.bus.stream)
        await w.clock.advance(60)
        await until_idle()
        assert w.catch_ups == 2


async def test_a_stream_that_cannot_store_results_is_examined_again_each_minute(tmp_path):
    stream = Bus(None)
    stream.state = replace(WAITING, detail="no answer")
    async with agent_run(tmp_path, results_bus=stream) as w:
        assert [warning.code for warning in warnings_in(await w.ledger.notes())] == ["stream_unavailable"]
        for checks in (1, 2):
            await w.clock.advance(60)
            await until_idle()
            assert stream.checks == checks
        stream.switch_to(NATS)
        await until_idle()
        assert warnings_in(await w.ledger.notes()) == ()
        await w.clock.advance(60)
        await until_idle()
        assert stream.checks == 2


async def test_a_stream_that_does_not_answer_is_read_again_later_and_delays_nothing_else(tmp_path):
    async with agent_run(tmp_path, StreamMark("a", 10)) as w:
        w.catch_up_error = BusError("no answer", transient=True)
        await w.switch_to(RECONNECTED, StreamMark("a", 12))
        assert (w.catch_ups, w.switches) == (2, [RECONNECTED])
        w.catch_up_error = None
        await w.clock.advance(1)
        await until_idle()
        assert (w.catch_ups, w.switches) == (3, [RECONNECTED])
        await w.clock.advance(60)
        await until_idle()
        assert w.catch_ups == 3
