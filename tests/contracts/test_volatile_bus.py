"""The contract of `VolatileBus`, in real time. To test another bus, add it to `BUSES`."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.adapters.nats import NatsOptions, Patience
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import StateError
from agent.domain.events import SyncProgress, SyncRequested
from agent.ports import VolatileBus
from agent.ports.dispatch import MAX_QUEUED
from tests.support.nats_bus import Hang, RecordingHandler, ended
from tests.support.servers.nats import NatsServer

pytest_plugins = ["tests.support.servers.fixtures"]

CLOCK = SystemClock()
TIME = datetime(2025, 6, 1, tzinfo=UTC)

Maker = Callable[[NatsServer], Awaitable[VolatileBus]]


async def memory(_server: NatsServer) -> VolatileBus:
    return MemoryBus(CLOCK)


async def connected_to(url: str) -> NatsBuses:
    patience = Patience(connect=5, ping=5, reconnect=0.05, reconnect_max=0.1)
    buses = NatsBuses(NatsOptions(servers=(url,), name="c", patience=patience), CloudEventsCodec(), clock=CLOCK)
    await buses.first_attempt()
    return buses


class _Owned:
    """A bus over a connection that ends with it."""

    def __init__(self, bus: VolatileBus, buses: NatsBuses) -> None:
        self._bus, self._buses = bus, buses

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)

    async def aclose(self) -> None:
        await self._bus.aclose()
        await self._buses.aclose()


async def core(server: NatsServer) -> VolatileBus:
    buses = await connected_to(server.url)
    assert buses.volatile.state.ready, buses.volatile.state
    return _Owned(buses.volatile, buses)


async def failover(server: NatsServer) -> VolatileBus:
    buses = await connected_to(server.url)
    return _Owned(FailoverBus(buses.volatile, MemoryBus(CLOCK)), buses)


async def failover_alone(_server: NatsServer) -> VolatileBus:
    """No NATS server listens: the local bus alone keeps all promises."""
    buses = await connected_to("nats://127.0.0.1:9")
    assert not buses.volatile.state.ready
    return _Owned(FailoverBus(buses.volatile, MemoryBus(CLOCK)), buses)


BUSES: dict[str, Maker] = {
    "memory": memory, "core-nats": core, "failover": failover, "failover-alone": failover_alone,
}  # fmt: skip


@pytest.fixture(params=sorted(BUSES))
async def bus(request, fresh_nats):
    made = await BUSES[request.param](fresh_nats)
    yield made
    await made.aclose()


def requested(number: int, method: str) -> SyncRequested:
    return SyncRequested(
        id=f"r-{number}.{method}", time=TIME, system_id="mac", request_id=f"r-{number}", agent_id="ab",
        reason="manual", route=(method,),
    )  # fmt: skip


def progress() -> SyncProgress:
    return SyncProgress(
        id="p-1", time=TIME, system_id="mac", request_id="r", method="cloud", phase="upload", done_bytes=1,
        total_bytes=2,
    )  # fmt: skip


async def test_an_event_reaches_every_subscription_whose_pattern_covers_its_subject(bus):
    inboxes = {
        pattern: RecordingHandler()
        for pattern in (
            "akosha.session.mac.ended", "akosha.session.*.ended", "akosha.session.>", "akosha.>", "*.session.mac.*",
        )
    }  # fmt: skip
    others = {
        p: RecordingHandler()
        for p in ("akosha.session.pc.ended", "akosha.session.*", "akosha.session.mac.ended.>", "akosha.sync.>")
    }
    for pattern, inbox in (inboxes | others).items():
        await bus.subscribe(pattern, inbox)
    await bus.publish(ended(1))
    for inbox in inboxes.values():
        assert await inbox.wait_for_count(1) == ["e-1"]
    await bus.publish(requested(9, "cloud"))
    assert await others["akosha.sync.>"].wait_for_count(1) == ["r-9.cloud"]
    assert all(not inbox.ids for pattern, inbox in others.items() if pattern != "akosha.sync.>")


async def test_a_delivered_event_equals_the_published_one(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    events = [ended(1), requested(2, "cloud"), progress()]
    for event in events:
        await bus.publish(event)
    await inbox.wait_for_count(3)
    # The order is promised per subject; the events have three subjects.
    assert sorted(inbox.events, key=lambda event: event.id) == sorted(events, key=lambda event: event.id)


async def test_events_are_delivered_in_order_and_one_at_a_time(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox)
    for number in range(50):
        await bus.publish(ended(number))
    assert await inbox.wait_for_count(50) == [f"e-{number}" for number in range(50)]


async def test_an_event_whose_handler_fails_is_not_delivered_again(bus):
    async def fail(event):
        raise ValueError(event.id)

    async def cancel_itself(_event):
        raise asyncio.CancelledError

    inbox = RecordingHandler(fail, cancel_itself)
    with capture_logs() as logs:
        await bus.subscribe("akosha.session.>", inbox)
        for number in range(3):
            await bus.publish(ended(number))
        assert await inbox.wait_for_count(3) == ["e-0", "e-1", "e-2"]
    assert [line["id"] for line in logs if line["event"] == "handler_failed"] == ["e-0", "e-1"]


async def test_a_subscription_does_not_delay_another_and_discards_what_it_cannot_keep(bus):
    stuck, free = RecordingHandler(Hang()), RecordingHandler()
    with capture_logs() as logs:
        await bus.subscribe("akosha.session.>", stuck)
        await bus.subscribe("akosha.session.>", free)
        for number in range(MAX_QUEUED + 3):
            await bus.publish(ended(number))
            if number % 100 == 0:
                await free.wait_for_count(number + 1)
        assert len(await free.wait_for_count(MAX_QUEUED + 3)) == MAX_QUEUED + 3
    assert [line["event"] for line in logs].count("event_discarded") == 1, "one log line for many events"


async def test_a_handler_may_publish(bus):
    async def answer(_event):
        await bus.publish(requested(7, "cloud"))

    answers = RecordingHandler()
    await bus.subscribe("akosha.session.>", RecordingHandler(answer))
    await bus.subscribe("akosha.sync.>", answers)
    await bus.publish(ended(1))
    assert await answers.wait_for_count(1) == ["r-7.cloud"]


async def test_a_subscription_receives_only_events_between_its_start_and_its_end(bus):
    await bus.publish(ended(1))
    first = RecordingHandler()
    subscription = await bus.subscribe("akosha.session.>", first)
    await bus.publish(ended(2))
    assert await first.wait_for_count(1) == ["e-2"]
    await subscription.stop()
    await bus.publish(ended(3))
    second = RecordingHandler()
    await bus.subscribe("akosha.session.>", second)
    await bus.publish(ended(4))
    assert await second.wait_for_count(1) == ["e-4"]
    assert first.ids == ["e-2"]


async def test_stop_waits_for_the_handlers_cleanup(bus):
    hang = Hang()
    subscription = await bus.subscribe("akosha.session.>", hang)
    await bus.publish(ended(1))
    await hang.wait_started()
    await subscription.stop()
    assert hang.cleaned_up
    await subscription.stop()


async def test_a_handler_may_stop_its_own_subscription(bus):
    async def stop(_event):
        await subscription.stop()

    inbox = RecordingHandler(stop)
    subscription = await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await inbox.wait_for_count(1)
    other = RecordingHandler()
    await bus.subscribe("akosha.session.>", other)
    await bus.publish(ended(2))
    await other.wait_for_count(1)
    assert inbox.ids == ["e-1"]


async def test_closing_a_bus_stops_subscriptions_leaves_no_task_and_later_calls_fail(bus):
    before = asyncio.all_tasks()
    hangs = [Hang(), Hang()]
    subscriptions = [await bus.subscribe("akosha.session.>", hang) for hang in hangs]
    await bus.publish(ended(1))
    for hang in hangs:
        await hang.wait_started()
    await bus.aclose()
    assert all(hang.cleaned_up for hang in hangs)
    await bus.aclose()
    await subscriptions[0].stop()
    with pytest.raises(StateError, match="closed"):
        await bus.publish(ended(2))
    with pytest.raises(StateError, match="closed"):
        await bus.subscribe("akosha.>", RecordingHandler())
    async with asyncio.timeout(60):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
