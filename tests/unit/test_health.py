"""The health monitor: which components count as stuck, and when the agent is ready."""

import asyncio

import pytest

from agent.application.monitoring.health import LEDGER, LEDGER_SECONDS, OBSERVE_SECONDS, SPOOL, WATCH, HealthMonitor
from agent.domain.errors import StateError
from agent.ports import BusState
from tests.support import values
from tests.support.clock import ManualClock

PERIOD = 60.0


class ScriptedWatch:
    """A watch that has always just scanned, until it hangs."""

    mode, lag = "native", 0.0

    def __init__(self, clock: ManualClock) -> None:
        self._clock, self.stuck_from = clock, None

    @property
    def scanned_at(self) -> float:
        return self._clock.monotonic() if self.stuck_from is None else self.stuck_from

    def hang(self) -> None:
        self.stuck_from = self._clock.monotonic()


class ScriptedLedger:
    """The ledger method that the health check calls; it answers while `free` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None

    async def last_position(self) -> int:
        await self.free.wait()
        if self.error:
            raise self.error
        return 1


class Setup:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.files, self.notes, self.ledger = ScriptedWatch(self.clock), ScriptedWatch(self.clock), ScriptedLedger()
        self.bus_ready, self.started, self.changes = True, asyncio.Event(), []
        self.health = HealthMonitor(
            clock=self.clock, ledger=self.ledger, watches={WATCH: self.files, SPOOL: self.notes},
            bus_state=lambda: BusState("nats", self.bus_ready, "there", values.NOON), period_seconds=PERIOD,
            started=self.started,
        )  # fmt: skip
        self.health.on_change(lambda: self.changes.append(set(self.health.problems())))


@pytest.fixture
async def setup():
    setup = Setup()
    running = asyncio.create_task(setup.health.run())
    await setup.clock.until_asleep()
    yield setup
    setup.ledger.free.set()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


async def test_an_idle_agent_is_healthy_for_hours(setup):
    for _ in range(200):
        await setup.clock.advance(OBSERVE_SECONDS)
    assert (setup.health.problems(), setup.changes) == ({}, [])


async def test_a_watch_without_a_scan_for_several_periods_is_stuck_until_its_next_scan(setup):
    setup.files.hang()
    await setup.clock.advance(3 * PERIOD)
    assert setup.health.problems() == {}
    await setup.clock.advance(PERIOD + OBSERVE_SECONDS)
    assert "no scan of its directory" in setup.health.stuck[WATCH]
    setup.files.stuck_from = None
    await setup.clock.advance(OBSERVE_SECONDS)
    assert setup.health.problems() == {}
    assert setup.changes == [{WATCH}, set()]


async def test_a_spool_that_is_not_scanned_is_stuck(setup):
    setup.notes.hang()
    await setup.clock.advance(5 * PERIOD)
    assert set(setup.health.stuck) == {SPOOL}


async def test_a_spool_reader_that_waits_for_the_bus_is_not_stuck(setup):
    setup.bus_ready = False
    setup.notes.hang()
    await setup.clock.advance(100 * PERIOD)
    assert setup.health.problems() == {}
    setup.bus_ready = True
    await setup.clock.advance(5 * PERIOD)
    assert set(setup.health.stuck) == {SPOOL}


async def test_after_sleep_all_periods_restart(setup):
    """If the monotonic clock includes the sleep, everything looks overdue at once."""
    setup.files.hang()
    setup.notes.hang()
    setup.ledger.free.clear()
    await setup.clock.advance(OBSERVE_SECONDS)
    setup.clock._elapsed += 8 * 3600  # without waking any sleeper
    await setup.clock.advance(0)
    assert setup.health.problems() == {}
    await setup.clock.advance(PERIOD)
    assert setup.health.problems() == {}
    await setup.clock.advance(5 * PERIOD)
    assert set(setup.health.stuck) == {WATCH, SPOOL, LEDGER}


async def test_a_ledger_that_does_not_answer_in_time_is_stuck_and_queried_once(setup):
    setup.ledger.free.clear()
    await setup.clock.advance(LEDGER_SECONDS)
    assert setup.health.problems() == {}
    await setup.clock.advance(2 * OBSERVE_SECONDS)
    assert "no answer" in setup.health.stuck[LEDGER]
    assert [task.get_name() for task in asyncio.all_tasks()].count("health-ledger") == 1
    setup.ledger.free.set()
    await setup.clock.advance(2 * OBSERVE_SECONDS)
    assert setup.health.problems() == {}


async def test_a_slow_ledger_that_answers_in_time_is_not_stuck(setup):
    for _ in range(20):
        setup.ledger.free.clear()
        await setup.clock.advance(LEDGER_SECONDS - OBSERVE_SECONDS)
        setup.ledger.free.set()
        await setup.clock.advance(OBSERVE_SECONDS)
    assert setup.changes == []


async def test_an_error_of_the_ledger_is_not_a_health_problem(setup):
    setup.ledger.error = StateError("the disk is full", transient=True)
    await setup.clock.advance(5 * OBSERVE_SECONDS)
    assert setup.health.problems() == {}


async def test_an_interrupted_loop_is_degraded_and_not_stuck_until_it_resumes(setup):
    setup.health.interrupted(WATCH, "the disk is full")
    setup.files.hang()
    await setup.clock.advance(100 * PERIOD)
    assert (setup.health.problems(), setup.health.stuck) == ({WATCH: "the disk is full"}, {})
    setup.health.resumed(WATCH)
    await setup.clock.advance(OBSERVE_SECONDS)
    assert setup.health.problems() == {}
    await setup.clock.advance(5 * PERIOD)
    assert set(setup.health.stuck) == {WATCH}


async def test_the_agent_is_ready_once_it_has_subscribed_and_watches(setup):
    assert not setup.health.ready
    setup.health.subscribed()
    assert not setup.health.ready
    setup.started.set()
    assert setup.health.ready
