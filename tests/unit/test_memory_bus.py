"""The in-process bus: exact delays, limits, and misbehaving handlers."""

import asyncio
import itertools
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings, strategies as st
from structlog.testing import capture_logs

from agent.adapters.memory_bus import MemoryBus
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
    bus = MemoryBus(clock, ack_wait_seconds=60)
    yield bus
    await bus.aclose()


async def test_a_failing_handler_gets_its_event_again_after_a_growing_delay(bus, clock):
    seen = []

    async def fails(message):
        seen.append(clock.monotonic())
        raise OSError("disk on fire")

    with capture_logs() as logs:
        await bus.subscribe("akosha.>", fails)
        await bus.publish(ended(1))
        await clock.advance(120)
    waits = [round(after - before, 3) for before, after in itertools.pairwise(seen)]
    assert waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(waits[9:]) == {30.0}
    assert logs[0]["event"] == "handler_failed"
    assert logs[0]["error"] == "OSError('disk on fire')"
    assert logs[0]["id"] == "e-1"


async def test_a_nak_resets_the_delay_of_failures(bus, clock):
    seen = []

    async def handler(message):
        seen.append(clock.monotonic())
        if len(seen) == 4:
            await message.nak(5)
        else:
            raise OSError

    await bus.subscribe("akosha.>", handler)
    await bus.publish(ended(1))
    await clock.advance(5.8)
    assert [round(at, 3) for at in seen] == [0.0, 0.1, 0.3, 0.7, 5.7, 5.8]


async def test_a_delay_continues_without_a_subscription(bus, clock):
    seen = []

    async def handler(message):
        seen.append(clock.monotonic())
        await (message.nak(10) if len(seen) == 1 else message.ack())

    first = await bus.subscribe("akosha.>", handler, durable="d")
    await bus.publish(ended(1))
    await clock.advance(4)
    await first.stop()
    await clock.advance(2)
    await bus.subscribe("akosha.>", handler, durable="d")
    await clock.advance(3.9)
    assert seen == [0.0]
    await clock.advance(0.1)
    assert seen == [0.0, 10.0]


async def test_a_handler_without_progress_for_the_ack_wait_is_cancelled(bus, clock):
    seen, cancelled = [], []

    async def handler(message):
        seen.append(clock.monotonic())
        try:
            await clock.sleep(50)
            await message.in_progress()
            await clock.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(clock.monotonic())
            raise

    with capture_logs() as logs:
        await bus.subscribe("akosha.>", handler)
        await bus.publish(ended(1))
        await clock.advance(109.9)
        assert cancelled == []
        await clock.advance(0.2)
    assert cancelled == [110.0]
    assert seen == [0.0, 110.0]
    assert [line["event"] for line in logs] == ["handler_silent"]


async def test_an_ack_during_the_cleanup_of_a_silent_handler_counts(bus, clock):
    seen = []

    async def handler(message):
        seen.append(message.event.id)
        if message.event.id == "e-1":
            try:
                await clock.sleep(1000)
            finally:
                await message.ack()
        else:
            await message.ack()

    await bus.subscribe("akosha.>", handler)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    await clock.advance(61)
    assert seen == ["e-1", "e-2"]


async def test_a_handler_that_cannot_be_cancelled_is_abandoned(bus, clock, monkeypatch):
    monkeypatch.setattr(dispatch, "CANCEL_SECONDS", 0.05)
    release, again, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen = []

    async def handler(message):
        seen.append(message.event.id)
        if len(seen) > 1:
            again.set()
            await message.ack()
            return
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        await message.nak()
        late.set()

    with capture_logs() as logs:
        await bus.subscribe("akosha.>", handler)
        await bus.publish(ended(1))
        await clock.advance(60)
        async with asyncio.timeout(60):
            await again.wait()
            release.set()
            await late.wait()
    await clock.advance(1)
    assert seen == ["e-1", "e-1"]
    assert [line["event"] for line in logs] == ["handler_abandoned", "handler_silent"]


async def test_stopping_twice_during_a_cleanup_waits_for_the_handler(bus, clock):
    started, may_end = asyncio.Event(), asyncio.Event()
    cleaned = []

    async def handler(message):
        started.set()
        try:
            await clock.sleep(1000)
        finally:
            await may_end.wait()
            cleaned.append(True)

    subscription = await bus.subscribe("akosha.>", handler)
    await bus.publish(ended(1))
    await started.wait()
    stops = [asyncio.create_task(subscription.stop()) for _ in range(2)]
    await clock.advance(1)
    assert not any(stop.done() for stop in stops)
    may_end.set()
    await asyncio.gather(*stops)
    assert cleaned == [True]


async def test_an_error_in_a_cleanup_is_logged(bus, clock):
    async def handler(message):
        try:
            await clock.sleep(1000)
        finally:
            raise OSError("no cleanup")

    with capture_logs() as logs:
        subscription = await bus.subscribe("akosha.>", handler)
        await bus.publish(ended(1))
        await clock.advance(1)
        await subscription.stop()
    assert [(line["event"], line["error"]) for line in logs] == [("handler_failed", "OSError('no cleanup')")]


async def test_a_handler_may_stop_its_own_subscription(bus, clock):
    seen, subscriptions = [], []

    async def handler(message):
        seen.append(message.event.id)
        await message.ack()
        await subscriptions[0].stop()

    subscriptions.append(await bus.subscribe("akosha.>", handler, durable="d"))
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    await clock.advance(1)
    assert seen == ["e-1"]
    await bus.subscribe("akosha.>", handler, durable="d")
    await clock.advance(1)
    assert seen == ["e-1", "e-2"]


async def test_a_full_mailbox_discards_its_oldest_events_but_not_the_current_one(clock):
    bus = MemoryBus(clock, limit=3)
    release, seen = asyncio.Event(), []

    async def handler(message):
        seen.append(message.event.id)
        await release.wait()
        await message.ack()

    await bus.subscribe("akosha.>", handler)
    await bus.publish(ended(0))
    await clock.advance(0)
    with capture_logs() as logs:
        for number in range(1, 6):
            await bus.publish(ended(number))
    assert [line["id"] for line in logs if line["event"] == "event_discarded"] == ["e-1", "e-2", "e-3"]
    release.set()
    await clock.advance(1)
    assert seen == ["e-0", "e-4", "e-5"]
    await bus.aclose()


async def test_a_durable_name_belongs_to_one_pattern(bus):
    async def handler(message):
        await message.ack()

    first = await bus.subscribe("akosha.session.>", handler, durable="d")
    await first.stop()
    with pytest.raises(StateError, match=r"is for 'akosha\.session\.>', not for 'akosha\.sync\.>'"):
        await bus.subscribe("akosha.sync.>", handler, durable="d")


async def test_a_durable_name_that_looks_like_a_pattern_is_not_one(bus, clock):
    seen = []

    async def handler(message):
        seen.append(message.event.id)
        await message.ack()

    await bus.subscribe("akosha.>", handler)
    await bus.subscribe("akosha.>", handler, durable="akosha.>")
    await bus.publish(ended(1))
    await clock.advance(1)
    assert seen == ["e-1", "e-1"]


async def test_publishing_an_event_without_a_subject_fails(bus):
    with pytest.raises(NamingError):
        await bus.publish(ended(1, system="a.b"))


async def test_tasks_are_named_after_their_subscription(bus, clock):
    names = []

    async def handler(message):
        names.extend(task.get_name() for task in asyncio.all_tasks())
        await message.ack()

    await bus.subscribe("akosha.>", handler, durable="mac-ab-cloud")
    await bus.publish(ended(1))
    await clock.advance(1)
    assert {"bus-mac-ab-cloud", "bus-mac-ab-cloud-handler"} <= set(names)


@settings(max_examples=60)
@given(script=st.lists(st.sampled_from(["ack", "nak", "nak later", "raise", "return", "hang"]), max_size=25))
def test_every_event_is_acked_once_and_in_order_for_any_handler(script):
    async def run() -> None:
        clock = ManualClock()
        bus = MemoryBus(clock, ack_wait_seconds=60)
        steps, steps_taken, acked, deliveries = iter(script), [], [], Counter()

        async def handler(message):
            deliveries[message.event.id] += 1
            steps_taken.append(next(steps, "ack"))
            match steps_taken[-1]:
                case "ack":
                    acked.append(message.event.id)
                    await message.ack()
                case "nak":
                    await message.nak()
                case "nak later":
                    await message.nak(7)
                case "raise":
                    raise ValueError
                case "hang":
                    await clock.sleep(10_000)
                case _:
                    pass

        await bus.subscribe("akosha.>", handler)
        for number in range(5):
            await bus.publish(ended(number))
        await clock.advance(25 * 61 + 1)
        assert acked == [f"e-{number}" for number in range(5)]
        assert deliveries.total() == 5 + sum(step != "ack" for step in steps_taken)
        await bus.aclose()

    with capture_logs():
        asyncio.run(run())
