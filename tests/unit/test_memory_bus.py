"""The in-process buses: delays, and misbehaving handlers."""

import asyncio
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from agent.adapters.memory_bus import MemoryBus, MemoryDurableBus
from agent.domain.errors import BusError, NamingError, StateError
from agent.domain.events import SessionEnded
from agent.ports import dispatch
from agent.ports.dispatch import redelivery_delay
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


def test_a_failed_event_is_delivered_again_after_a_growing_delay():
    delays = [round(redelivery_delay(failures), 3) for failures in range(1, 12)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


async def test_the_durable_bus_without_a_server_accepts_events_until_it_is_closed_and_has_no_stream(clock):
    bus = MemoryDurableBus(clock)
    await bus.wait_until_ready()
    await bus.publish(ended(1))
    with pytest.raises(BusError, match="there is no stream") as caught:
        await bus.newest(ended(1).subject)
    assert (caught.value.transient, bus.stream) == (False, None)
    await bus.aclose()
    with pytest.raises(StateError, match="closed"):
        await bus.publish(ended(2))


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


async def test_publishing_an_event_without_a_subject_fails(bus):
    with pytest.raises(NamingError):
        await bus.publish(ended(1, system="a.b"))
