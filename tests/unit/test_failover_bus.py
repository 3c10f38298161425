"""The failover bus: which of two buses carries an event."""

import asyncio

import pytest

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.domain.errors import BusError, StateError, WireError
from agent.domain.events import Event, SessionEnded
from agent.ports import BusState
from tests.support import values
from tests.support.clock import ManualClock

SECONDS = 60
TRANSIENT, PERMANENT = BusError("no answer", transient=True), BusError("larger than the server takes")
EVENTS = [values.request(), SessionEnded(id="e-1", time=values.NOON, system_id=values.SYSTEM)]


class RemoteBus(MemoryBus):
    """A remote bus: the test sets its readiness and the error of `publish`."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.failure: Exception | None = None
        self.tried: list[Event] = []
        self.listeners = []
        self.ready(True)

    def ready(self, ready: bool, detail: str = "nats://example.org") -> None:
        self.state = BusState("nats", ready=ready, detail=detail, since=values.NOON)

    def on_change(self, listener) -> None:
        self.listeners.append(listener)

    async def publish(self, event: Event) -> None:
        self.tried.append(event)
        if self.failure is not None:
            raise self.failure
        await super().publish(event)


class RecordingHandler:
    """Record the events received; with `hold`, each handler waits for `release`."""

    def __init__(self, *, hold: bool = False) -> None:
        self.events: list[Event] = []
        self.cancelled = 0
        self.release = asyncio.Event()
        self._changed = asyncio.Condition()
        if not hold:
            self.release.set()

    async def __call__(self, event) -> None:
        async with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def wait_for_count(self, count: int) -> list[Event]:
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.events) >= count)
        return self.events


@pytest.fixture
def clock():
    return ManualClock(values.NOON)


@pytest.fixture
def remote(clock):
    return RemoteBus(clock)


@pytest.fixture
def local(clock):
    return MemoryBus(clock)


@pytest.fixture
async def bus(remote, local):
    made = FailoverBus(remote, local)
    yield made
    await made.aclose()


async def subscribed_inbox(bus) -> RecordingHandler:
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    return inbox


@pytest.mark.parametrize("event", EVENTS)
async def test_disposable_events_use_the_remote_bus_if_ready_or_the_local_one(bus, remote, local, event):
    remote_inbox, local_inbox = await subscribed_inbox(remote), await subscribed_inbox(local)
    await bus.publish(event)
    assert await remote_inbox.wait_for_count(1) == [event]
    assert local_inbox.events == []
    remote.ready(False)
    await bus.publish(event)
    assert await local_inbox.wait_for_count(1) == [event]
    assert remote.tried == [event]


@pytest.mark.parametrize("event", EVENTS)
async def test_after_a_transient_remote_error_an_event_uses_the_local_bus(bus, remote, local, event):
    local_inbox = await subscribed_inbox(local)
    remote.failure = TRANSIENT
    await bus.publish(event)
    assert await local_inbox.wait_for_count(1) == [event]


@pytest.mark.parametrize("failure", [PERMANENT, WireError("too long"), StateError("the event bus is closed")])
async def test_a_permanent_remote_error_is_raised(bus, remote, local, clock, failure):
    local_inbox = await subscribed_inbox(local)
    remote.failure = failure
    with pytest.raises(type(failure)) as raised:
        await bus.publish(EVENTS[0])
    assert raised.value is failure
    await clock.advance(0)
    assert local_inbox.events == []


async def test_a_subscription_hears_both_buses(bus, remote, local):
    inbox = await subscribed_inbox(bus)
    await remote.publish(EVENTS[0])
    assert await inbox.wait_for_count(1) == [EVENTS[0]]
    await local.publish(EVENTS[1])
    assert await inbox.wait_for_count(2) == EVENTS


async def test_nothing_is_moved_between_the_buses(bus, remote, local, clock):
    inbox = await subscribed_inbox(bus)
    remote.ready(False)
    await bus.publish(EVENTS[0])
    await inbox.wait_for_count(1)
    remote.ready(True)
    await clock.advance(60)
    assert (remote.tried, inbox.events) == ([], [EVENTS[0]])


async def test_stop_stops_both_and_cancels_the_handler(bus, remote, local, clock):
    inbox = RecordingHandler(hold=True)
    subscription = await bus.subscribe("akosha.>", inbox)
    await remote.publish(EVENTS[0])
    await inbox.wait_for_count(1)
    await subscription.stop()
    assert inbox.cancelled == 1
    for one in (remote, local):
        await one.publish(EVENTS[1])
    await clock.advance(0)
    assert inbox.events == [EVENTS[0]]


async def test_closing_closes_both(bus, remote, local):
    await bus.aclose()
    for one in (remote, local):
        with pytest.raises(StateError, match="closed"):
            await one.publish(EVENTS[0])


async def test_the_state_is_that_of_the_bus_in_use_with_the_reason(bus, remote):
    assert bus.state is remote.state
    remote.ready(False, "no answer")
    state = bus.state
    assert (state.name, state.ready, state.detail) == ("memory", True, "in this process: no answer")
    bus.on_change(print)
    assert remote.listeners == [print]
