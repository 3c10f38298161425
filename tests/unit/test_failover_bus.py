"""Two buses as one: what goes to which, and one event at a time over both."""

import asyncio

import pytest

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.domain.errors import BusError, StateError, WireError
from agent.domain.events import Event, SessionEnded
from agent.ports import BusState, StreamMark
from tests.support import values
from tests.support.clock import ManualClock

SECONDS = 60
TRANSIENT, PERMANENT = BusError("no answer", transient=True), BusError("larger than the server takes")
EVENTS = [values.request(), SessionEnded(id="e-1", time=values.NOON, system_id=values.SYSTEM)]
RESULTS = [values.skipped(), values.failed(), values.succeeded(values.manifest(reflection=1))]


class Distant(MemoryBus):
    """A distant bus that a test takes away, and that fails as told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.failure: Exception | None = None
        self.tried: list[Event] = []
        self.listeners = []
        self.ready(True)
        self.stream = StreamMark("a", 1)

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
    """Records what it is given; holds each event until it is let go."""

    def __init__(self, *, hold: bool = False) -> None:
        self.events: list[Event] = []
        self.cancelled = 0
        self.go_on = asyncio.Event()
        self._news = asyncio.Condition()
        if not hold:
            self.go_on.set()

    async def __call__(self, message) -> None:
        async with self._news:
            self.events.append(message.event)
            self._news.notify_all()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await message.ack()

    async def wait_for_count(self, count: int) -> list[Event]:
        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(lambda: len(self.events) >= count)
        return self.events


@pytest.fixture
def clock():
    return ManualClock(values.NOON)


@pytest.fixture
def distant(clock):
    return Distant(clock)


@pytest.fixture
def local(clock):
    return MemoryBus(clock)


@pytest.fixture
async def bus(distant, local):
    made = FailoverBus(distant, local, progress_interval_seconds=0.01)
    yield made
    await made.aclose()


async def heard_on(bus) -> RecordingHandler:
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    return inbox


@pytest.mark.parametrize("event", EVENTS)
async def test_what_is_disposable_goes_to_the_distant_bus_while_it_is_there_else_to_the_local_one(
    bus, distant, local, event
):
    far, near = await heard_on(distant), await heard_on(local)
    await bus.publish(event)
    assert await far.wait_for_count(1) == [event]
    assert near.events == []
    distant.ready(False)
    await bus.publish(event)
    assert await near.wait_for_count(1) == [event]
    assert distant.tried == [event]


@pytest.mark.parametrize("event", EVENTS)
async def test_what_the_distant_bus_does_not_take_for_now_stays_here(bus, distant, local, event):
    near = await heard_on(local)
    distant.failure = TRANSIENT
    await bus.publish(event)
    assert await near.wait_for_count(1) == [event]


@pytest.mark.parametrize("failure", [PERMANENT, WireError("too long"), StateError("the event bus is closed")])
async def test_an_error_that_will_not_pass_is_not_covered_up_by_the_local_bus(bus, distant, local, clock, failure):
    near = await heard_on(local)
    distant.failure = failure
    with pytest.raises(type(failure)) as raised:
        await bus.publish(EVENTS[0])
    assert raised.value is failure
    await clock.advance(0)
    assert near.events == []


@pytest.mark.parametrize("result", RESULTS)
async def test_a_result_goes_to_the_distant_bus_or_nowhere(bus, distant, local, clock, result):
    far, near = await heard_on(distant), await heard_on(local)
    await bus.publish(result)
    assert await far.wait_for_count(1) == [result]
    distant.ready(False)
    distant.failure = TRANSIENT
    with pytest.raises(BusError):
        await bus.publish(result)
    await clock.advance(0)
    assert near.events == []


async def test_one_event_at_a_time_over_both_buses(bus, distant, local, clock):
    inbox = RecordingHandler(hold=True)
    await bus.subscribe("akosha.>", inbox)
    await distant.publish(EVENTS[0])
    assert await inbox.wait_for_count(1) == [EVENTS[0]]
    await local.publish(EVENTS[1])
    await clock.advance(0)
    assert inbox.events == [EVENTS[0]]
    inbox.go_on.set()
    assert await inbox.wait_for_count(2) == EVENTS


async def test_a_handler_that_fails_holds_nothing_up(bus, distant, local):
    seen = RecordingHandler()

    async def fail_on_the_distant(message) -> None:
        if message.event is EVENTS[0]:
            raise ValueError
        await seen(message)

    await bus.subscribe("akosha.>", fail_on_the_distant)
    await distant.publish(EVENTS[0])
    await local.publish(EVENTS[1])
    assert await seen.wait_for_count(1) == [EVENTS[1]]


async def test_who_waits_for_its_turn_is_not_silent(bus, distant, local):
    class Waiting:
        event = EVENTS[1]

        def __init__(self) -> None:
            self.received, self.reported = asyncio.Event(), 0

        async def in_progress(self) -> None:
            self.reported += 1
            if self.reported == 2:
                self.received.set()

        async def ack(self) -> None:
            pass

    handlers = []

    async def subscribe(pattern, handler, *, durable=None):
        handlers.append(handler)

    distant.subscribe = local.subscribe = subscribe
    inbox, first, second = RecordingHandler(hold=True), Waiting(), Waiting()
    await bus.subscribe("akosha.>", inbox)
    working = asyncio.create_task(handlers[0](first))
    await inbox.wait_for_count(1)
    waiting = asyncio.create_task(handlers[1](second))
    async with asyncio.timeout(SECONDS):
        await second.received.wait()
        assert first.reported == 0
        inbox.go_on.set()
        await asyncio.gather(working, waiting)
    assert len(inbox.events) == 2


async def test_who_is_cancelled_while_it_waits_for_its_turn_leaves_the_turn_to_others(bus, distant, local, clock):
    inbox = RecordingHandler(hold=True)
    subscription = await bus.subscribe("akosha.>", inbox, durable="d")
    await distant.publish(EVENTS[0])
    await inbox.wait_for_count(1)
    await local.publish(EVENTS[1])
    await clock.advance(0)
    await subscription.stop()
    again = RecordingHandler()
    await bus.subscribe("akosha.>", again, durable="d")
    assert set(map(str, await again.wait_for_count(2))) == set(map(str, EVENTS))


async def test_stop_stops_both_and_cancels_the_handler(bus, distant, local, clock):
    inbox = RecordingHandler(hold=True)
    subscription = await bus.subscribe("akosha.>", inbox)
    await distant.publish(EVENTS[0])
    await inbox.wait_for_count(1)
    await subscription.stop()
    assert inbox.cancelled == 1
    for one in (distant, local):
        await one.publish(EVENTS[1])
    await clock.advance(0)
    assert inbox.events == [EVENTS[0]]


async def test_a_name_in_use_on_the_distant_bus_is_not_taken_on_the_local_one(bus, distant, local):
    await distant.subscribe("akosha.>", RecordingHandler(), durable="d")
    with pytest.raises(StateError, match="in use"):
        await bus.subscribe("akosha.>", RecordingHandler(), durable="d")
    await local.subscribe("akosha.>", RecordingHandler(), durable="d")


async def test_closing_closes_both(bus, distant, local):
    await bus.aclose()
    for one in (distant, local):
        with pytest.raises(StateError, match="closed"):
            await one.publish(EVENTS[0])


async def test_the_state_is_that_of_the_bus_in_use_and_says_why_it_is_not_the_other(bus, distant):
    assert bus.state is distant.state
    distant.ready(False, "no answer")
    state = bus.state
    assert (state.name, state.ready, state.detail) == ("memory", True, "in this process: no answer")
    assert bus.stream is distant.stream
    bus.on_change(print)
    assert distant.listeners == [print]
    await bus.wait_until_ready()
