"""What counts as stuck, what does not, and when the agent is ready."""

import asyncio

import pytest

from agent.application.monitoring.health import LEDGER, LEDGER_SECONDS, OBSERVE_SECONDS, SPOOL, WATCH, HealthMonitor
from agent.domain.errors import StateError
from agent.ports import BusState
from tests.support import values
from tests.support.clock import ManualClock

PERIOD = 60.0


class Looking:
    """A watch that looks each time it is asked, until it is stuck."""

    mode, lag = "native", 0.0

    def __init__(self, clock: ManualClock) -> None:
        self._clock, self.stuck_from = clock, None

    @property
    def scanned_at(self) -> float:
        return self._clock.monotonic() if self.stuck_from is None else self.stuck_from

    def hang(self) -> None:
        self.stuck_from = self._clock.monotonic()


class Answering:
    """The part of a ledger that is asked whether it lives."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None

    async def last_position(self) -> int:
        await self.free.wait()
        if self.error:
            raise self.error
        return 1


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.files, self.notes, self.ledger = Looking(self.clock), Looking(self.clock), Answering()
        self.bus_ready, self.begun, self.changes = True, asyncio.Event(), []
        self.health = HealthMonitor(
            clock=self.clock, ledger=self.ledger, watches={WATCH: self.files, SPOOL: self.notes},
            bus_state=lambda: BusState("nats", self.bus_ready, "there", values.NOON), period_seconds=PERIOD,
            started=self.begun,
        )  # fmt: skip
        self.health.on_change(lambda: self.changes.append(set(self.health.problems())))


@pytest.fixture
async def world():
    world = World()
    running = asyncio.create_task(world.health.run())
    await world.clock.until_asleep()
    yield world
    world.ledger.free.set()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


async def test_an_agent_at_rest_is_well_for_days(world):
    for _ in range(200):
        await world.clock.advance(OBSERVE_SECONDS)
    assert (world.health.problems(), world.changes) == ({}, [])


async def test_a_watch_that_has_not_looked_for_a_few_of_its_periods_is_stuck_until_it_looks_again(world):
    world.files.hang()
    await world.clock.advance(3 * PERIOD)
    assert world.health.problems() == {}
    await world.clock.advance(PERIOD + OBSERVE_SECONDS)
    assert "no scan of its directory" in world.health.stuck[WATCH]
    world.files.stuck_from = None
    await world.clock.advance(OBSERVE_SECONDS)
    assert world.health.problems() == {}
    assert world.changes == [{WATCH}, set()]


async def test_a_spool_that_is_not_looked_at_is_stuck(world):
    world.notes.hang()
    await world.clock.advance(5 * PERIOD)
    assert set(world.health.stuck) == {SPOOL}


async def test_a_reader_of_notes_that_waits_for_the_bus_is_not_stuck(world):
    world.bus_ready = False
    world.notes.hang()
    await world.clock.advance(100 * PERIOD)
    assert world.health.problems() == {}
    world.bus_ready = True
    await world.clock.advance(5 * PERIOD)
    assert set(world.health.stuck) == {SPOOL}


async def test_a_machine_that_slept_is_given_all_its_time_again(world):
    """Where the monotonic time has counted the sleep, everything looks old at once."""
    world.files.hang()
    world.notes.hang()
    world.ledger.free.clear()
    await world.clock.advance(OBSERVE_SECONDS)
    world.clock._elapsed += 8 * 3600  # nobody was woken meanwhile
    await world.clock.advance(0)
    assert world.health.problems() == {}
    await world.clock.advance(PERIOD)
    assert world.health.problems() == {}
    await world.clock.advance(5 * PERIOD)
    assert set(world.health.stuck) == {WATCH, SPOOL, LEDGER}


async def test_a_ledger_that_does_not_answer_in_time_is_stuck_and_is_asked_once(world):
    world.ledger.free.clear()
    await world.clock.advance(LEDGER_SECONDS)
    assert world.health.problems() == {}
    await world.clock.advance(2 * OBSERVE_SECONDS)
    assert "no answer" in world.health.stuck[LEDGER]
    assert [task.get_name() for task in asyncio.all_tasks()].count("health-ledger") == 1
    world.ledger.free.set()
    await world.clock.advance(2 * OBSERVE_SECONDS)
    assert world.health.problems() == {}


async def test_a_ledger_that_is_at_work_for_long_is_not_stuck(world):
    for _ in range(20):
        world.ledger.free.clear()
        await world.clock.advance(LEDGER_SECONDS - OBSERVE_SECONDS)
        world.ledger.free.set()
        await world.clock.advance(OBSERVE_SECONDS)
    assert world.changes == []


async def test_what_the_ledger_complains_of_is_reported_to_those_who_need_it(world):
    world.ledger.error = StateError("the disk is full", transient=True)
    await world.clock.advance(5 * OBSERVE_SECONDS)
    assert world.health.problems() == {}


async def test_a_loop_that_was_interrupted_is_in_trouble_and_not_stuck_until_it_begins_again(world):
    world.health.interrupted(WATCH, "the disk is full")
    world.files.hang()
    await world.clock.advance(100 * PERIOD)
    assert (world.health.problems(), world.health.stuck) == ({WATCH: "the disk is full"}, {})
    world.health.resumed(WATCH)
    await world.clock.advance(OBSERVE_SECONDS)
    assert world.health.problems() == {}
    await world.clock.advance(5 * PERIOD)
    assert set(world.health.stuck) == {WATCH}


async def test_it_is_ready_once_it_has_subscribed_and_watches(world):
    assert not world.health.ready
    world.health.subscribed()
    assert not world.health.ready
    world.begun.set()
    assert world.health.ready
