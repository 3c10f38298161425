"""What every `EventBus` promises, on real time. A bus joins by an entry in `BUSES`."""

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
    """Where nothing listens, the local bus keeps all promises."""

    async def make() -> EventBus:
        distant = await NatsBus.open(nats_options("nats://127.0.0.1:9"), CloudEventsCodec(), clock=CLOCK)
        assert not distant.state.ready
        return FailoverBus(distant, MemoryBus(CLOCK, ack_wait_seconds=ACK_WAIT), progress_interval_seconds=ACK_WAIT / 3)

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
    """A handler that records what it is given, and does with the nth delivery what the nth action says (then: ack)."""

    def __init__(self, *actions: Callable[[Message], object]) -> None:
        self.deliveries: list[Event] = []
        self.times: list[float] = []
        self.at_once = 0
        self._actions = list(actions)
        self._news = asyncio.Condition()

    async def __call__(self, message: Message) -> None:
        self.at_once += 1
        assert self.at_once == 1, "two events at once in one subscription"
        try:
            number = len(self.deliveries)
            async with self._news:
                self.deliveries.append(message.event)
                self.times.append(CLOCK.monotonic())
                self._news.notify_all()
            await (self._actions[number] if number < len(self._actions) else ack)(message)
        finally:
            self.at_once -= 1

    async def wait_for_count(self, count: int) -> list[str]:
        """Return the ids of what was delivered, once it is so many."""
        async with asyncio.timeout(60), self._news:
            await self._news.wait_for(lambda: len(self.deliveries) >= count)
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
    """An action that never ends by itself, and tells when it began and how it ended."""

    def __init__(self) -> None:
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.begun.set()
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
    last = requested(9, "cloud")
    await bus.publish(last)
    assert await others["akosha.sync.>"].wait_for_count(1) == [last.id]
    assert all(not inbox.deliveries for pattern, inbox in others.items() if pattern != "akosha.sync.>")


async def test_an_event_arrives_equal_to_what_was_published(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.>", inbox)
    events = [ended(1), requested(2, "cloud"), progress()]
    for event in events:
        await bus.publish(event)
    await inbox.wait_for_count(3)
    # The order is promised per subject, and these are three.
    assert sorted(inbox.deliveries, key=lambda event: event.id) == sorted(events, key=lambda event: event.id)


async def test_events_come_in_order_and_one_at_a_time(bus):
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox)
    for number in range(50):
        await bus.publish(ended(number))
    assert await inbox.wait_for_count(50) == [f"e-{number}" for number in range(50)]


@pytest.mark.parametrize("unsettled", [nak, fail, return_silently])
async def test_what_is_not_acked_comes_again_and_later_events_wait_behind_it(bus, unsettled):
    inbox = RecordingHandler(unsettled, unsettled)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(4) == ["e-1", "e-1", "e-1", "e-2"]


async def test_a_nak_with_a_delay_comes_again_after_it_and_not_before(bus):
    async def later(message: Message) -> None:
        await message.nak(0.4)

    inbox = RecordingHandler(later)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]
    assert inbox.times[1] - inbox.times[0] >= 0.39


async def test_a_silent_handler_is_cancelled_and_its_event_comes_again(bus):
    hang = Hang()
    inbox = RecordingHandler(hang)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]
    assert hang.cancelled.is_set()
    assert inbox.times[1] - inbox.times[0] >= ACK_WAIT * 0.9


async def test_a_handler_that_tells_of_its_progress_may_take_longer(bus):
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


async def test_what_fails_after_its_ack_does_not_come_again(bus):
    async def ack_and_fail(message: Message) -> None:
        await message.ack()
        raise ValueError

    inbox = RecordingHandler(ack_and_fail)
    await bus.subscribe("akosha.session.>", inbox)
    await bus.publish(ended(1))
    await bus.publish(ended(2))
    assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


async def test_one_subscription_does_not_hold_up_another(bus):
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

    asked, answers = RecordingHandler(answer), RecordingHandler()
    await bus.subscribe("akosha.session.>", asked)
    await bus.subscribe("akosha.sync.>", answers)
    await bus.publish(ended(1))
    assert await answers.wait_for_count(1) == ["r-7.cloud"]


async def test_without_a_durable_name_only_what_is_published_from_now_on_is_seen(bus):
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


async def test_a_durable_name_keeps_what_was_not_acked_and_what_came_in_between(bus):
    hang = Hang()
    first = await bus.subscribe("akosha.session.>", RecordingHandler(ack, hang), durable="mac-ab-cloud")
    for number in range(3):
        await bus.publish(ended(number))
    async with asyncio.timeout(60):
        await hang.begun.wait()
    await first.stop()
    assert hang.cancelled.is_set()
    await bus.publish(ended(3))
    inbox = RecordingHandler()
    await bus.subscribe("akosha.session.>", inbox, durable="mac-ab-cloud")
    assert await inbox.wait_for_count(3) == ["e-1", "e-2", "e-3"]


async def test_durable_names_are_apart(bus):
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


async def test_stop_waits_until_the_handler_has_cleaned_up(bus):
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def careful(message: Message) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.set()

    subscription = await bus.subscribe("akosha.session.>", careful)
    await bus.publish(ended(1))
    async with asyncio.timeout(60):
        await begun.wait()
    await subscription.stop()
    assert cleaned.is_set()
    await subscription.stop()


async def test_a_closed_bus_has_stopped_everything_and_takes_nothing(bus):
    hangs = [Hang(), Hang()]
    await bus.subscribe("akosha.session.>", RecordingHandler(hangs[0]), durable="mac-ab-cloud")
    idle = await bus.subscribe("akosha.session.>", RecordingHandler(hangs[1]))
    await bus.publish(ended(1))
    async with asyncio.timeout(60):
        for hang in hangs:
            await hang.begun.wait()
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
