"""The in-process buses: exact delays, and misbehaving handlers."""

import asyncio
import itertools
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from agent.adapters.memory_bus import MemoryBus, MemoryDurableBus
from agent.domain.errors import NamingError, StateError
from agent.domain.events import SessionEnded
from agent.ports import dispatch
from tests.support.clock import ManualClock


def ended(number: int, system: str = "mac") -> SessionEnded:
    return SessionEnded(id=f"e-{number}", time=datetime(2025, 6, 1, tzinfo=UTC), system_id=system)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def bus(clock):
    bus = MemoryBus(clock)
    yield bus
    await bus.aclose()


@pytest.fixture
async def durable(clock):
    bus = MemoryDurableBus(clock)
    yield bus
    await bus.aclose()


async def test_a_failing_handler_gets_its_event_again_after_a_growing_delay(durable, clock):
    seen = []

    async def fails(event):
        seen.append(clock.monotonic())
        if len(seen) == 12:
            return
        raise OSError("disk on fire")

    with capture_logs() as logs:
        await durable.consume("akosha.>", fails, durable="d")
        await durable.publish(ended(1))
        await clock.advance(300)
        await durable.publish(ended(2))
        await clock.advance(0)
    waits = [round(after - before, 3) for before, after in itertools.pairwise(seen)]
    assert waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(waits[9:11]) == {30.0}
    assert (logs[0]["event"], logs[0]["error"]) == ("handler_failed", "OSError('disk on fire')")
    assert len(seen) == 13, "the next event is delivered at once"


async def test_a_handler_that_cannot_be_cancelled_is_abandoned(bus, clock, monkeypatch):
    monkeypatch.setattr(dispatch, "CANCEL_SECONDS", 0.05)
    release, ending = asyncio.Event(), asyncio.Event()

    async def handler(_event):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        ending.set()

    with capture_logs() as logs:
        subscription = await bus.subscribe("akosha.>", handler)
        await bus.publish(ended(1))
        await clock.advance(0)
        await subscription.stop()
    assert [line["event"] for line in logs] == ["handler_abandoned"]
    release.set()
    async with asyncio.timeout(60):
        await ending.wait()


async def test_stopping_twice_during_a_cleanup_waits_for_the_handler(bus, clock):
    may_end = asyncio.Event()
    cleaned = []

    async def handler(_event):
        try:
            await clock.sleep(1000)
        finally:
            await may_end.wait()
            cleaned.append(True)

    subscription = await bus.subscribe("akosha.>", handler)
    await bus.publish(ended(1))
    await clock.advance(0)
    stops = [asyncio.create_task(subscription.stop()) for _ in range(2)]
    await clock.advance(1)
    assert not any(stop.done() for stop in stops)
    may_end.set()
    await asyncio.gather(*stops, return_exceptions=True)
    assert cleaned == [True]


async def test_an_error_in_a_cleanup_is_logged(bus, clock):
    async def handler(_event):
        try:
            await clock.sleep(1000)
        finally:
            raise OSError("no cleanup")

    with capture_logs() as logs:
        subscription = await bus.subscribe("akosha.>", handler)
        await bus.publish(ended(1))
        await clock.advance(0)
        await subscription.stop()
    assert [(line["event"], line["error"]) for line in logs] == [("handler_failed", "OSError('no cleanup')")]


async def test_a_durable_name_belongs_to_one_pattern(durable):
    async def handler(_event):
        pass

    first = await durable.consume("akosha.session.>", handler, durable="d")
    await first.stop()
    with pytest.raises(StateError, match=r"is for 'akosha\.session\.>', not for 'akosha\.sync\.>'"):
        await durable.consume("akosha.sync.>", handler, durable="d")


async def test_publishing_an_event_without_a_subject_fails(bus):
    with pytest.raises(NamingError):
        await bus.publish(ended(1, system="a.b"))
