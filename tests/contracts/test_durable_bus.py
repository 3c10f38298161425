"""The contract of `ConsumerBus`, in real time. To test another bus, add it to `BUSES`."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agent.adapters.nats import NatsOptions, Patience
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import StateError
from agent.domain.naming import results_pattern
from agent.ports import ConsumerBus
from tests.support import values
from tests.support.consumed_bus import ConsumedMemoryBus
from tests.support.nats_bus import Hang, RecordingHandler
from tests.support.servers.nats import NatsServer

pytest_plugins = ["tests.support.servers.fixtures"]

CLOCK = SystemClock()
PATTERN = results_pattern("*", "*")

Maker = Callable[[NatsServer], Awaitable[ConsumerBus]]


async def memory(_server: NatsServer) -> ConsumerBus:
    return ConsumedMemoryBus(CLOCK)


async def jetstream(server: NatsServer) -> ConsumerBus:
    options = NatsOptions(servers=(server.url,), name="c", patience=Patience(ack_wait=0.5))
    durable = NatsBuses(options, CloudEventsCodec(), clock=CLOCK).durable
    async with asyncio.timeout(60):
        await durable.wait_until_ready()
    return durable


BUSES: dict[str, Maker] = {"memory": memory, "jetstream": jetstream}


@pytest.fixture(params=sorted(BUSES))
async def bus(request, fresh_nats):
    made = await BUSES[request.param](fresh_nats)
    yield made
    await made.aclose()


async def fail(event):
    raise ValueError(event.id)


async def cancel_itself(_event):
    raise asyncio.CancelledError


def skipped(number: int):
    return values.skipped(f"r-{number}")


def ids(*numbers: int) -> list[str]:
    return [skipped(number).id for number in numbers]


async def test_events_are_delivered_unchanged_in_order_and_one_at_a_time(bus):
    inbox = RecordingHandler()
    await bus.consume(PATTERN, inbox, durable="one")
    events = [skipped(number) for number in range(30)]
    for event in events:
        await bus.publish(event)
    await inbox.wait_for_count(30)
    assert inbox.events == events


@pytest.mark.parametrize("failure", [fail, cancel_itself])
async def test_a_failed_event_is_delivered_again_before_later_events(bus, failure):
    inbox = RecordingHandler(failure, failure)
    await bus.consume(PATTERN, inbox, durable="one")
    await bus.publish(skipped(1))
    await bus.publish(skipped(2))
    assert await inbox.wait_for_count(4) == ids(1, 1, 1, 2)


async def test_a_handler_may_take_longer_than_the_ack_wait(bus):
    async def work(_event):
        await CLOCK.sleep(1.2)

    inbox = RecordingHandler(work)
    await bus.consume(PATTERN, inbox, durable="one")
    await bus.publish(skipped(1))
    await bus.publish(skipped(2))
    assert await inbox.wait_for_count(2) == ids(1, 2)


async def test_a_consumer_does_not_delay_another(bus):
    stuck, free = RecordingHandler(Hang()), RecordingHandler()
    await bus.consume(PATTERN, stuck, durable="one")
    await bus.consume(PATTERN, free, durable="two")
    for number in range(3):
        await bus.publish(skipped(number))
    assert await free.wait_for_count(3) == ids(0, 1, 2)


async def test_a_durable_name_keeps_the_unfinished_event_and_events_while_stopped(bus):
    hang = Hang()
    first = await bus.consume(PATTERN, RecordingHandler(None, hang), durable="one")
    for number in range(3):
        await bus.publish(skipped(number))
    await hang.wait_started()
    await first.stop()
    assert hang.cleaned_up
    await bus.publish(skipped(3))
    inbox = RecordingHandler()
    await bus.consume(PATTERN, inbox, durable="one")
    assert await inbox.wait_for_count(3) == ids(1, 2, 3)


async def test_a_durable_name_serves_one_consumer_at_a_time(bus):
    first = await bus.consume(PATTERN, RecordingHandler(), durable="one")
    with pytest.raises(StateError, match="in use"):
        await bus.consume(PATTERN, RecordingHandler(), durable="one")
    await first.stop()
    inbox = RecordingHandler()
    await bus.consume(PATTERN, inbox, durable="one")
    await bus.publish(skipped(1))
    assert await inbox.wait_for_count(1) == ids(1)


async def test_a_removed_name_is_forgotten_and_an_unknown_one_is_no_error(bus):
    await bus.remove_consumer("one")
    consumer = await bus.consume(PATTERN, RecordingHandler(Hang()), durable="one")
    await consumer.stop()
    await bus.remove_consumer("one")
    other = await bus.consume(results_pattern("*", "skipped"), RecordingHandler(), durable="one")
    await other.stop()


async def test_closing_a_bus_stops_consumers_leaves_no_task_and_later_calls_fail(bus):
    before = asyncio.all_tasks()
    hang = Hang()
    await bus.consume(PATTERN, hang, durable="one")
    idle = await bus.consume(PATTERN, RecordingHandler(), durable="two")
    await bus.publish(skipped(1))
    await hang.wait_started()
    await bus.aclose()
    assert hang.cleaned_up
    await bus.aclose()
    await idle.stop()
    with pytest.raises(StateError, match="closed"):
        await bus.publish(skipped(2))
    with pytest.raises(StateError, match="closed"):
        await bus.consume(PATTERN, RecordingHandler(), durable="three")
    async with asyncio.timeout(60):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
