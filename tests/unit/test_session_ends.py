"""When the end of a session requests a sync, and when it does not."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.triggers.session_ends import BURST, NAMED, NAMED_SECONDS, REQUEST_SECONDS, SessionEnds
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import StateError
from agent.domain.events import CAUSED_BY_BYTES, Event, SessionEnded, SyncRequested
from agent.ports import StoredEvent
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.ledger import inline_ledger

TIMEOUT = 60.0


class FakePublisher:
    """A publisher that requests a sync on each trigger or, if `reason` is False, records a skipped result."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.requests: list[SyncRequested] = []
        self.repeated: list[str] = []
        self.triggered: list[str] = []
        self.reason, self.before = True, 0
        self._ledger = ledger

    async def trigger(self, reason: str) -> SyncRequested | None:
        self.triggered.append(reason)
        return None

    async def trigger_session_end(self, caused_by: tuple[str, ...]) -> SyncRequested | None:
        request = replace(
            values.request(f"r{self.before + len(self.requests) + 1}", reason="session_end"), caused_by=caused_by
        )
        self.requests.append(request)
        if self.reason:
            return request
        await self._ledger.settle(None, replace(values.skipped(request.request_id), caused_by=caused_by))
        return None

    async def records(self) -> dict[str, TargetRecord]:
        return {}

    async def republish(self, request: SyncRequested) -> None:
        self.repeated.append(request.request_id)


class FakeStream:
    """A durable bus with a newest event."""

    def __init__(self) -> None:
        self.stored: StoredEvent | None = None
        self.subject = ""

    async def newest(self, subject: str) -> StoredEvent | None:
        self.subject = subject
        return self.stored


@dataclass
class Setup:
    clock: ManualClock
    ledger: SqliteLedger
    busy: bool = False

    def __post_init__(self) -> None:
        self.publisher = FakePublisher(self.ledger)
        self.stream = FakeStream()
        self.ends = SessionEnds(
            publisher=self.publisher, ledger=self.ledger, stream=self.stream, clock=self.clock, system_id=values.SYSTEM,
            timeout_seconds=TIMEOUT, busy=lambda: self.busy,
        )  # fmt: skip

    async def end(self, number: int, system: str = values.SYSTEM) -> None:
        await self.take(SessionEnded(id=f"e-{number}", time=values.NOON, system_id=system, session_id=str(number)))

    async def take(self, event: Event) -> None:
        await self.ends.handle(event)
        await until_idle()

    async def outcome(self, request_id: str) -> None:
        """Record the result of a sync."""
        request = next((each for each in self.publisher.requests if each.request_id == request_id), None)
        caused_by = request.caused_by if request else ()
        await self.ledger.settle(None, replace(values.skipped(request_id), caused_by=caused_by))
        self.ends.sync_finished.set()
        await until_idle()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await until_idle()

    @property
    def request_count(self) -> int:
        return len(self.publisher.requests)

    @property
    def causes(self) -> list[tuple[str, ...]]:
        return [request.caused_by for request in self.publisher.requests]


@asynccontextmanager
async def session_ends(tmp_path, clock=None):
    clock = clock or ManualClock(values.NOON)
    ledger = inline_ledger(clock, tmp_path / "ledger")
    w = Setup(clock, ledger)
    running = asyncio.create_task(w.ends.run())
    try:
        yield w
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await ledger.aclose()


async def test_a_session_end_requests_a_sync_at_once(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1)
        assert [request.reason for request in w.publisher.requests] == ["session_end"]


async def test_session_ends_during_a_sync_request_exactly_one_more_after_it(tmp_path):
    async with session_ends(tmp_path) as w:
        for number in range(1, 6):
            await w.end(number)
        assert w.request_count == 1
        w.ends.sync_finished.set()
        await until_idle()
        assert w.request_count == 1, "the outcome of another sync does not count"
        await w.outcome("r1")
        assert w.causes == [("e-1",), ("e-2", "e-3", "e-4", "e-5")]
        await w.outcome("r2")
        assert w.request_count == 2
        await w.end(6)
        assert w.request_count == 3
        await w.outcome("r3")
        assert await w.ledger.open_session_ends() == []


async def test_after_a_skipped_sync_the_next_session_end_requests_one_again(tmp_path):
    async with session_ends(tmp_path) as w:
        w.publisher.reason = False
        await w.end(1)
        await w.end(2)
        assert w.request_count == 2


async def test_a_known_session_end_requests_nothing_also_in_a_later_run(tmp_path):
    clock = ManualClock(values.NOON)
    async with session_ends(tmp_path, clock) as w:
        await w.end(1)
        await w.outcome("r1")
        await w.end(1)
        assert w.request_count == 1
    clock.jump(timedelta(days=10_000))
    async with session_ends(tmp_path, clock) as w:
        w.publisher.before = 1
        await w.end(1)
        assert w.request_count == 0
        await w.end(2)
        assert w.request_count == 1


async def test_other_events_and_systems_request_nothing(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1, system="another")
        await w.take(values.skipped())
        await w.take(values.request())
        assert w.request_count == 0
        await w.end(1)
        assert w.request_count == 1, "the ID of another system's session end does not count"


async def test_a_request_left_on_another_bus_is_published_again(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1)
        w.ends.republish()
        await until_idle()
        assert (w.request_count, w.publisher.repeated) == (1, ["r1"]), (
            "the unchanged request has one result on either bus"
        )
        await w.outcome("r1")
        w.ends.republish()
        await until_idle()
        assert (w.request_count, w.publisher.repeated) == (1, ["r1"]), "no request is open"


async def test_a_request_without_a_result_is_replaced_after_the_timeout(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1)
        await w.end(2)
        await w.pass_time(TIMEOUT - 1)
        assert w.request_count == 1
        await w.pass_time(1)
        assert w.causes == [("e-1",), ("e-1", "e-2")], "the new request includes the session end of the lost one"


async def test_a_running_sync_is_awaited_for_any_time(tmp_path):
    async with session_ends(tmp_path) as w:
        w.busy = True
        await w.end(1)
        await w.end(2)
        for _ in range(5):
            await w.pass_time(TIMEOUT)
        assert w.request_count == 1
        w.busy = False
        await w.outcome("r1")
        assert w.request_count == 2


async def test_an_accepted_session_end_without_a_result_is_requested_in_the_next_run(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1)
        await w.end(2)
    async with session_ends(tmp_path) as w:
        await until_idle()
        assert w.causes == [("e-1", "e-2")]
        await w.outcome("r1")
        assert await w.ledger.open_session_ends() == []


async def test_session_ends_with_one_id_and_different_senders_are_distinct(tmp_path):
    async with session_ends(tmp_path) as w:
        for sender in ("", "/session-buddy", "/another", "/session-buddy"):
            await w.take(SessionEnded(id="e", time=values.NOON, system_id=values.SYSTEM, sender=sender))
        assert w.request_count == 1
        assert await w.ledger.open_session_ends() == ["e"] * 3


async def test_more_session_ends_than_a_result_can_name_get_several_results(tmp_path):
    async with session_ends(tmp_path) as w:
        w.busy = True
        await w.end(0)
        for number in range(1, 1001):
            event = SessionEnded(id=f"{number:036}", time=values.NOON, system_id=values.SYSTEM)
            assert await w.ends.accept(event)
        w.publisher.reason = False
        await w.outcome("r1")
        for _ in range(20):
            await until_idle()
        assert [len(causes) for causes in w.causes] == [1, 420, 420, 160]
        assert len({event_id for causes in w.causes for event_id in causes}) == 1001
        assert await w.ledger.open_session_ends() == []


async def test_an_id_too_long_for_a_result_is_refused(tmp_path):
    async with session_ends(tmp_path) as w:
        with capture_logs() as logs:
            await w.take(SessionEnded(id="x" * CAUSED_BY_BYTES, time=values.NOON, system_id=values.SYSTEM))
        assert (w.request_count, [line["event"] for line in logs]) == (0, ["event_refused"])


def session_end(number: int) -> SessionEnded:
    return SessionEnded(id=f"e-{number}", time=values.NOON, system_id=values.SYSTEM, session_id=str(number))


async def test_a_flood_is_named_up_to_a_limit_and_the_rest_is_answered_by_one_sync_a_minute(tmp_path):
    async with session_ends(tmp_path) as w:
        w.publisher.reason = False
        with capture_logs() as logs:
            for number in range(0, 10_000, 2):
                await asyncio.gather(*(w.ends.handle(session_end(each)) for each in (number, number + 1)))
            await w.pass_time(REQUEST_SECONDS)
        assert sum(len(causes) for causes in w.causes) == NAMED
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["session_ends_not_named"]
        await w.pass_time(REQUEST_SECONDS)
        assert w.publisher.triggered == ["session_end"], "the sync for those that are not named"
        await w.pass_time(REQUEST_SECONDS)
        assert w.publisher.triggered == ["session_end"]
        await w.pass_time(NAMED_SECONDS)
        await w.end(10_000)
        assert w.causes[-1] == ("e-10000",), "later ones are named again"


async def test_session_ends_that_continue_add_one_result_a_minute(tmp_path):
    async with session_ends(tmp_path) as w:
        w.publisher.reason = False
        for number in range(BURST):
            await w.end(number)
        assert w.request_count == BURST
        for number in range(BURST, NAMED):
            await w.end(number)
        assert w.request_count == BURST
        await w.pass_time(REQUEST_SECONDS)
        assert w.request_count == BURST + 1
        assert (len(w.causes[-1]), await w.ledger.open_session_ends()) == (NAMED - BURST, [])
        await w.pass_time(BURST * REQUEST_SECONDS)
        assert w.request_count == BURST + 1


@pytest.mark.parametrize("event_id", ["e-1", "x" * CAUSED_BY_BYTES], ids=["duplicate", "too long"])
async def test_a_flood_of_session_ends_that_are_not_accepted_causes_few_writes_and_warnings(
    tmp_path, monkeypatch, event_id
):
    async with session_ends(tmp_path) as w:
        writes, accept = [], w.ledger.accept

        async def counted(event: SessionEnded) -> bool:
            writes.append(event)
            return await accept(event)

        monkeypatch.setattr(w.ledger, "accept", counted)
        with capture_logs() as logs:
            for _ in range(2000):
                await w.ends.handle(SessionEnded(id=event_id, time=values.NOON, system_id=values.SYSTEM))
            await w.pass_time(REQUEST_SECONDS)
            await w.ends.handle(session_end(1))
        assert len(writes) <= NAMED
        assert len([line for line in logs if line["log_level"] == "warning"]) <= NAMED + 1


async def test_a_session_end_is_accepted_when_the_ledger_can_be_written_again(tmp_path, monkeypatch):
    async with session_ends(tmp_path) as w:
        accept, full = w.ledger.accept, True

        async def on_a_full_disk(event: SessionEnded) -> bool:
            nonlocal full
            if full:
                full = False
                raise StateError("the disk is full", transient=True)
            return await accept(event)

        monkeypatch.setattr(w.ledger, "accept", on_a_full_disk)
        with capture_logs() as logs:
            await w.end(1)
        assert w.causes == [("e-1",)]
        assert [line["event"] for line in logs] == ["session_end_not_recorded", "session_ended"]


async def test_the_newest_session_end_in_the_stream_is_accepted_once(tmp_path):
    clock = ManualClock(values.NOON)
    async with session_ends(tmp_path, clock) as w:
        await w.ends.catch_up()
        assert (w.stream.subject, w.request_count) == (f"akosha.session.{values.SYSTEM}.ended", 0)
        w.stream.stored = StoredEvent(session_end(7), "12 2025-06-01T12:00:00Z")
        for _ in range(2):
            await w.ends.catch_up()
            await until_idle()
        assert w.causes == [("e-7",)]
        await w.outcome("r1")
    async with session_ends(tmp_path, clock) as w:
        w.publisher.before = 1
        w.stream.stored = StoredEvent(session_end(7), "12 2025-06-01T12:00:00Z")
        await w.ends.catch_up()
        w.stream.stored = StoredEvent(session_end(8), "3 2025-06-02T12:00:00Z")
        await w.ends.catch_up()
        await until_idle()
        assert w.causes == [("e-8",)], "a stream that replaces another has lower sequences"


async def test_a_newest_session_end_that_is_not_valid_is_answered_by_one_sync_for_those_that_it_hides(tmp_path):
    async with session_ends(tmp_path) as w:
        w.stream.stored = StoredEvent(None, "12 2025-06-01T12:00:00Z")
        for _ in range(2):
            await w.ends.catch_up()
            await w.pass_time(REQUEST_SECONDS)
        assert (w.publisher.triggered, w.request_count) == (["session_end"], 0)


async def test_a_session_end_that_was_received_is_not_accepted_again_from_the_stream(tmp_path):
    async with session_ends(tmp_path) as w:
        await w.end(1)
        await w.outcome("r1")
        w.stream.stored = StoredEvent(session_end(1), "12 2025-06-01T12:00:00Z")
        await w.ends.catch_up()
        await until_idle()
        assert w.request_count == 1
