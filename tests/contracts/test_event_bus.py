"""The contract of `EventBus`, in real time. To test another bus, add it to `BUSES`."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.adapters.nats import NatsOptions, Patience
from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import StateError
from agent.domain.events import Event, SessionEnded, SyncProgress, SyncRequested
from agent.ports import EventBus, Message
from tests.support.servers.nats import NatsServer

pytest_plugins = ["tests.support.servers.fixtures"]

ACK_WAIT = 0.5
CLOCK = SystemClock()


Maker = Callable[[], Awaitable[EventBus]]


def nats_options(url: str) -> NatsOptions:
    patience = Patience(connect=5, ping=5, reconnect=0.05, reconnect_max=0.1, ack_wait=ACK_WAIT)
    return NatsOptions(servers=(url,), name="contract", patience=patience)


def memory(_server: NatsServer) -> Maker:
    async def make() -> EventBus:
        return MemoryBus(CLOCK, ack_wait_seconds=ACK_WAIT)

    return make


def jetstream(server: NatsServer) -> Maker:
    async def make() -> EventBus:
        bus = await NatsBus.open(nats_options(server.url), CloudEventsCodec(), clock=CLOCK)
        assert bus.state.ready, bus.state
        return bus

    return make


def failover(server: NatsServer) -> Maker:
    async def make() -> EventBus:
        local = MemoryBus(CLOCK, ack_wait_seconds=ACK_WAIT)
        return FailoverBus(await jetstream(server)(), local, progress_interval_seconds=ACK_WAIT / 3)

    return make


def failover_alone(_server: NatsServer) -> Maker:
    """No NATS server listens: the local bus alone keeps all promises."""

    async def make() -> EventBus:
        remote = await NatsBus.open(nats_options("nats://127.0.0.1:9"), CloudEventsCodec(), clock=CLOCK)
        assert not remote.state.ready
        return FailoverBus(remote, MemoryBus(CLOCK, ack_wait_seconds=ACK_WAIT), progress_interval_seconds=ACK_WAIT / 3)

    return make


BUSES = {"memory": memory, "jetstream": jetstream, "failover": failover, "failover-alone": failover_alone}


@pytest.fixture(params=sorted(BUSES))
async def bus(request, fresh_nats):
    made = await BUSES[request.param](fresh_nats)()
    yield made
    await made.aclose()


def ended(number: int, system: str = "mac") -> SessionEnded:
    return SessionEnded(
        id=f"e-{number}", time=datetime(2025, 6, 1, tzinfo=UTC), system_id=system, session_id=str(number)
    )


def requested(number: int, method: str) -> SyncRequested:
    return SyncRequested(
        id=f"r-{number}.{method}", time=datetime(2025, 6, 1, tzinfo=UTC), system_id="mac", request_id=f"r-{number}",
        agent_id="ab", reason="manual", route=(method,),
    )  # fmt: skip


def progress() -> SyncProgress:
    return SyncProgress(
        id="p-1", time=datetime(2025, 6, 1, tzinfo=UTC), system_id="mac", request_id="r", method="cloud",
        phase="upload", done_bytes=1, total_bytes=2,
    )  # fmt: skip


class RecordingHandler:
    """A handler that records its deliveries and runs the nth action on the nth one; without an action, it acks."""

    def __init__(self, *actions: Callable[[Message], object]) -> None:
        self.deliveries: list[Event] = []
        self.times: list[float] = []
        self.running = 0
        self._actions = list(actions)
        self._delivered = asyncio.Condition()

    async def __call__(self, message: Message) -> None:
        self.running += 1
        assert self.running == 1, "two handlers run at once in one subscription"
        try:
            number = len(self.deliveries)
            async with self._delivered:
                self.deliveries.append(message.event)
                self.times.append(CLOCK.monotonic())
                self._delivered.notify_all()
            await (self._actions[number] if number < len(self._actions) else ack)(message)
        finally:
            self.running -= 1

    async def wait_for_count(self, count: int) -> list[str]:
        """Wait for `count` deliveries; return the ids of all."""
        async with asyncio.timeout(60), self._delivered:
            await self._delivered.wait_for(lambda: len(self.deliveries) >= count)
        return [event.id for event in self.deliveries]


async def ack(message: Message) -> None:
    await message.ack()


async def nak(message: Message) -> None:
    await message.nak()


async def fail(message: Message) -> None:
    raise ValueError(message.event.id)


async def return_silently(message: Message) -> None:
    pass


class Hang:
    """An action that runs until it is cancelled; its events report the start and the cancellation."""

    def __init__(self) -> None:
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


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
    request = requested(9, "cloud")
    await bus.publish(request)
    assert await others["akosha.sync.>"].wait_for_count(1) == [request.id]
    assert all(not inbox.deliveries for pattern, inbox in others.items() if pattern != "akosha.sync.>")


async def test_a_delivered_event_equals_the_published_one(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    events = [ended(1), requested(2, "cloud"), progress()]
    for event in events:
        await bus.publish(event)
    await inbox.wait_for_count(3)
    # The order is promised per subject; the events have three subjects.
    assert sorted(inbox.deliveries, key=lambda event: event.id) == sorted(events, key=lambda event: event.id)


async def test_events_are_delivered_in_order_and_one_at_a_time(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox)
    for number in range(50):
        await bus.publish(ended(number))
    assert await inbox.wait_for_count(50) == [f"e-{number}" for number in range(50)]


@pytest.mark.parametrize("unsettled", [nak, fail, return_silently])
async def test_an_event_without_an_ack_is_redelivered_before_later_events(bus, unsettled):
    inbox = RecordingHandler(unsettled, unsettled)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(4) == ["e-1", "e-1", "e-1", "e-2"]


async def test_a_nak_with_a_delay_is_redelivered_after_the_delay(bus):
    async def later(message: Message) -> None:
        await message.nak(0.4)

    inbox = RecordingHandler(later)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]
    assert inbox.times[1] - inbox.times[0] >= 0.39


async def test_a_silent_handler_is_cancelled_and_its_event_is_redelivered(bus):
    hang = Hang()
    inbox = RecordingHandler(hang)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]
    assert hang.cancelled.is_set()
    assert inbox.times[1] - inbox.times[0] >= ACK_WAIT * 0.9


async def test_a_handler_that_reports_progress_may_exceed_the_ack_wait(bus):
    async def work(message: Message) -> None:
        for _ in range(15):
            await CLOCK.sleep(ACK_WAIT / 10)
            await message.in_progress()
        await message.ack()

    inbox = RecordingHandler(work)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(2) == ["e-1", "e-2"]
    assert inbox.times[1] - inbox.times[0] > ACK_WAIT


async def test_the_first_of_ack_and_nak_counts(bus):
    async def ack_then_nak(message: Message) -> None:
        await message.ack()
        await message.ack()
        await message.nak()

    async def nak_then_ack(message: Message) -> None:
        await message.nak()
        await message.ack()

    inbox = RecordingHandler(ack_then_nak, nak_then_ack)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(3) == ["e-1", "e-2", "e-2"]


async def test_an_event_whose_handler_fails_after_the_ack_is_not_redelivered(bus):
    async def ack_and_fail(message: Message) -> None:
        await message.ack()
        raise ValueError

    inbox = RecordingHandler(ack_and_fail)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


async def test_a_subscription_does_not_delay_another(bus):
    stuck, free = RecordingHandler(Hang()), RecordingHandler()
    await bus.subscribe("akosha.session.>", stuck)
    await bus.subscribe("akosha.session.>", free)
    for number in range(3):
        await bus.publish(ended(number))
    assert await free.wait_for_count(3) == ["e-0", "e-1", "e-2"]


async def test_a_handler_may_publish(bus):
    async def answer(message: Message) -> None:
        await bus.publish(requested(7, "cloud"))
        await message.ack()

    requests, answers = RecordingHandler(answer), RecordingHandler()
    await bus.subscribe("akosha.session.>", requests)
    await bus.subscribe("akosha.sync.>", answers)
    await bus.publish(ended(1))
    assert await answers.wait_for_count(1) == ["r-7.cloud"]


async def test_a_subscription_without_a_durable_name_receives_only_later_events(bus):
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
    assert await first.wait_for_count(1) == ["e-2"]


async def test_a_durable_name_keeps_events_without_an_ack_and_events_while_stopped(bus):
    hang = Hang()
    first = await bus.subscribe("akosha.session.>", RecordingHandler(ack, hang), durable="mac-ab-cloud")
    for number in range(3):
        await bus.publish(ended(number))
    async with asyncio.timeout(60):
        await hang.started.wait()
    await first.stop()
    assert hang.cancelled.is_set()
    await bus.publish(ended(3))
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox, durable="mac-ab-cloud")
    assert await inbox.wait_for_count(3) == ["e-1", "e-2", "e-3"]


async def test_each_durable_name_receives_every_event(bus):
    inboxes = [RecordingHandler(), RecordingHandler()]
    for name, inbox in zip(("mac-ab-cloud", "mac-cd-cloud"), inboxes, strict=True):
        await bus.subscribe("akosha.session.>", inbox, durable=name)
    await bus.publish(ended(1))
    assert [await inbox.wait_for_count(1) for inbox in inboxes] == [["e-1"], ["e-1"]]


async def test_a_durable_name_serves_one_subscription_at_a_time(bus):
    first = await bus.subscribe("akosha.session.>", RecordingHandler(), durable="mac-ab-cloud")
    with pytest.raises(StateError, match="in use"):
        await bus.subscribe("akosha.session.>", RecordingHandler(), durable="mac-ab-cloud")
    await first.stop()
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox, durable="mac-ab-cloud")
    await bus.publish(ended(1))
    assert await inbox.wait_for_count(1) == ["e-1"]


async def test_stop_waits_for_the_handlers_cleanup(bus):
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def clean_up(message: Message) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.set()

    subscription = await bus.subscribe("akosha.session.>", clean_up)
    await bus.publish(ended(1))
    async with asyncio.timeout(60):
        await started.wait()
    await subscription.stop()
    assert cleaned.is_set()
    await subscription.stop()


async def test_closing_a_bus_stops_subscriptions_and_later_calls_fail(bus):
    hangs = [Hang(), Hang()]
    await bus.subscribe("akosha.session.>", RecordingHandler(hangs[0]), durable="mac-ab-cloud")
    idle = await bus.subscribe("akosha.session.>", RecordingHandler(hangs[1]))
    await bus.publish(ended(1))
    async with asyncio.timeout(60):
        for hang in hangs:
            await hang.started.wait()
    await bus.aclose()
    assert all(hang.cancelled.is_set() for hang in hangs)
    await bus.aclose()
    await idle.stop()
    with pytest.raises(StateError, match="closed"):
        await bus.publish(ended(2))
    with pytest.raises(StateError, match="closed"):
        await bus.subscribe("akosha.>", RecordingHandler())


async def test_a_closed_bus_leaves_no_task_behind(bus):
    before = asyncio.all_tasks()
    await bus.subscribe("akosha.>", RecordingHandler(fail, Hang()))
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    await bus.publish(ended(1))
    await inbox.wait_for_count(1)
    await bus.aclose()
    async with asyncio.timeout(60):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
