"""When a session's end asks for a sync, and when it does not."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.triggers.session_ends import SessionEnds
from agent.domain.delivery_state import TargetRecord
from agent.domain.events import CAUSED_BY_BYTES, Event, SessionEnded, SyncRequested
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.ledger import inline_ledger

PATIENCE = 60.0


class Asked:
    """A publisher that finds a reason for a sync each time it is asked (or never: `reason` False), and says so."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.requests: list[SyncRequested] = []
        self.repeated: list[str] = []
        self.reason, self.before = True, 0
        self._ledger = ledger

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


@dataclass
class Letter:
    event: Event
    acked: bool = False

    async def ack(self) -> None:
        self.acked = True


@dataclass
class World:
    clock: ManualClock
    ledger: SqliteLedger
    busy: bool = False

    def __post_init__(self) -> None:
        self.publisher = Asked(self.ledger)
        self.ends = SessionEnds(
            publisher=self.publisher, ledger=self.ledger, clock=self.clock, system_id=values.SYSTEM,
            timeout_seconds=PATIENCE, busy=lambda: self.busy,
        )  # fmt: skip

    async def end(self, number: int, system: str = values.SYSTEM) -> None:
        await self.take(SessionEnded(id=f"e-{number}", time=values.NOON, system_id=system, session_id=str(number)))

    async def take(self, event: Event) -> None:
        letter = Letter(event)
        await self.ends.handle(letter)
        assert letter.acked
        await until_idle()

    async def outcome(self, request_id: str) -> None:
        """The sync has come to its end."""
        asked = next((each for each in self.publisher.requests if each.request_id == request_id), None)
        caused_by = asked.caused_by if asked else ()
        await self.ledger.settle(None, replace(values.skipped(request_id), caused_by=caused_by))
        self.ends.sync_finished.set()
        await until_idle()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await until_idle()

    @property
    def asked(self) -> int:
        return len(self.publisher.requests)

    @property
    def causes(self) -> list[tuple[str, ...]]:
        return [request.caused_by for request in self.publisher.requests]


@asynccontextmanager
async def world(tmp_path, clock=None):
    clock = clock or ManualClock(values.NOON)
    ledger = inline_ledger(clock, tmp_path / "ledger")
    w = World(clock, ledger)
    running = asyncio.create_task(w.ends.run())
    try:
        yield w
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await ledger.aclose()


async def test_an_end_asks_for_a_sync_at_once(tmp_path):
    async with world(tmp_path) as w:
        await w.end(1)
        assert [request.reason for request in w.publisher.requests] == ["session_end"]


async def test_all_ends_that_come_while_a_sync_is_under_way_ask_for_exactly_one_more_after_it(tmp_path):
    async with world(tmp_path) as w:
        for number in range(1, 6):
            await w.end(number)
        assert w.asked == 1
        w.ends.sync_finished.set()
        await until_idle()
        assert w.asked == 1, "another sync's outcome is not this one's"
        await w.outcome("r1")
        assert w.causes == [("e-1",), ("e-2", "e-3", "e-4", "e-5")]
        await w.outcome("r2")
        assert w.asked == 2
        await w.end(6)
        assert w.asked == 3
        await w.outcome("r3")
        assert await w.ledger.open_session_ends() == []


async def test_where_there_is_nothing_to_sync_the_next_end_asks_again(tmp_path):
    async with world(tmp_path) as w:
        w.publisher.reason = False
        await w.end(1)
        await w.end(2)
        assert w.asked == 2


async def test_an_end_that_is_known_asks_for_nothing_in_a_later_life_and_years_later(tmp_path):
    clock = ManualClock(values.NOON)
    async with world(tmp_path, clock) as w:
        await w.end(1)
        await w.outcome("r1")
        await w.end(1)
        assert w.asked == 1
    clock.jump(timedelta(days=10_000))
    async with world(tmp_path, clock) as w:
        w.publisher.before = 1
        await w.end(1)
        assert w.asked == 0
        await w.end(2)
        assert w.asked == 1


async def test_what_is_no_end_of_this_system_is_acked_and_asks_for_nothing(tmp_path):
    async with world(tmp_path) as w:
        await w.end(1, system="another")
        await w.take(values.skipped())
        await w.take(values.request())
        assert w.asked == 0
        await w.end(1)
        assert w.asked == 1, "the id of another system's end is not taken"


async def test_a_request_that_stayed_behind_on_another_bus_is_asked_for_again(tmp_path):
    async with world(tmp_path) as w:
        await w.end(1)
        w.ends.republish()
        await until_idle()
        assert (w.asked, w.publisher.repeated) == (1, ["r1"]), "as it was: it has one result, whichever bus brings it"
        await w.outcome("r1")
        w.ends.republish()
        await until_idle()
        assert (w.asked, w.publisher.repeated) == (1, ["r1"]), "nothing is waited for"


async def test_a_request_that_is_never_heard_of_is_not_waited_for_longer_than_the_patience(tmp_path):
    async with world(tmp_path) as w:
        await w.end(1)
        await w.end(2)
        await w.pass_time(PATIENCE - 1)
        assert w.asked == 1
        await w.pass_time(1)
        assert w.causes == [("e-1",), ("e-1", "e-2")], "the end that the lost one was to answer is asked for again"


async def test_a_sync_that_is_under_way_is_waited_for_however_long_it_takes(tmp_path):
    async with world(tmp_path) as w:
        w.busy = True
        await w.end(1)
        await w.end(2)
        for _ in range(5):
            await w.pass_time(PATIENCE)
        assert w.asked == 1
        w.busy = False
        await w.outcome("r1")
        assert w.asked == 2


async def test_an_end_that_was_accepted_and_has_no_result_is_asked_for_in_the_next_life(tmp_path):
    async with world(tmp_path) as w:
        await w.end(1)
        await w.end(2)
    async with world(tmp_path) as w:
        await until_idle()
        assert w.causes == [("e-1", "e-2")]
        await w.outcome("r1")
        assert await w.ledger.open_session_ends() == []


async def test_ends_of_one_id_and_several_senders_are_several(tmp_path):
    async with world(tmp_path) as w:
        for sender in ("", "/session-buddy", "/another", "/session-buddy"):
            await w.take(SessionEnded(id="e", time=values.NOON, system_id=values.SYSTEM, sender=sender))
        assert w.asked == 1
        assert await w.ledger.open_session_ends() == ["e"] * 3


async def test_more_ends_than_a_result_can_name_are_answered_by_several(tmp_path):
    async with world(tmp_path) as w:
        w.busy = True
        await w.end(0)
        for number in range(1, 1001):
            event = SessionEnded(id=f"{number:036}", time=values.NOON, system_id=values.SYSTEM)
            await w.ends.handle(Letter(event))
        w.publisher.reason = False
        await w.outcome("r1")
        for _ in range(20):
            await until_idle()
        assert [len(causes) for causes in w.causes] == [1, 420, 420, 160]
        assert len({event_id for causes in w.causes for event_id in causes}) == 1001
        assert await w.ledger.open_session_ends() == []


async def test_an_id_that_no_result_could_name_is_refused(tmp_path):
    async with world(tmp_path) as w:
        with capture_logs() as logs:
            await w.take(SessionEnded(id="x" * CAUSED_BY_BYTES, time=values.NOON, system_id=values.SYSTEM))
        assert (w.asked, [line["event"] for line in logs]) == (0, ["event_refused"])
