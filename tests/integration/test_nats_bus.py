"""NatsBus on a real NATS server: its stream and consumers, and the loss of the stream, a consumer or the server."""

import asyncio
import itertools
import math
import random
import time

import pytest
from nats.js.api import AckPolicy, DiscardPolicy, RetentionPolicy, StorageType
from structlog.testing import capture_logs

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.adapters.nats import (
    Limits,
    Login,
    client as client_module,
    consumer as consumer_module,
    messages as messages_module,
    subscription as subscription_module,
)
from agent.adapters.nats.bus import NatsBus
from agent.adapters.nats.consumer import DurableConsumer
from agent.domain.errors import BusError, StateError
from tests.support.nats_bus import (
    CLOCK,
    CODEC,
    SECONDS,
    RecordingHandler,
    ended,
    opened_bus,
    options,
    progress,
    sockets,
    until,
)
from tests.support.servers.nats import connected, running_nats
from tests.support.servers.nats_credentials import PASSWORD, USER, password_config

pytest_plugins = ["tests.support.servers.fixtures"]

SUBJECTS = ["akosha.session.>", "akosha.sync.>", "akosha.ingest.>", "akosha.archive.>"]
DAY = 86_400


async def ready(bus) -> None:
    async with asyncio.timeout(SECONDS):
        await bus.wait_until_ready()


async def restarted(bus, server, *, end="stop") -> None:
    """Stop the server, wait until the bus has noticed, start the server and wait until the bus is ready."""
    lost = bus._connection.client().lost
    getattr(server, end)()
    async with asyncio.timeout(SECONDS):
        await lost.wait()
    server.start()
    await ready(bus)


async def handled(sequence: int, *subscriptions) -> None:
    """Return when the server has confirmed the subscriptions' acks up to this sequence number of the stream."""
    await until(lambda: all(one.consumer.seen == sequence for one in subscriptions))


def break_connection(bus) -> None:
    bus._connection.client()._transport._io_writer.transport.abort()


async def stored(server) -> int:
    async with connected(server.url) as other:
        return (await other.jetstream().stream_info("AKOSHA_SYNC")).state.messages


async def consumer(server, name: str):
    async with connected(server.url) as other:
        return await other.jetstream().consumer_info("AKOSHA_SYNC", name)


async def test_the_stream_is_created_with_the_documented_configuration(fresh_nats):
    async with opened_bus(fresh_nats.url), connected(fresh_nats.url) as other:
        made = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
        assert made.subjects == SUBJECTS
        assert (made.retention, made.discard) == (RetentionPolicy.LIMITS, DiscardPolicy.OLD)
        assert (made.storage, made.num_replicas) == (StorageType.FILE, 1)
        assert (made.max_age, made.max_bytes, made.duplicate_window) == (7 * DAY, 256 * 2**20, 600)
        assert (made.max_msgs, made.max_consumers, made.max_msg_size, made.max_msgs_per_subject) == (-1, -1, -1, -1)


async def test_an_existing_stream_is_used_unchanged_with_one_warning(fresh_nats):
    async with connected(fresh_nats.url) as other:
        jetstream = other.jetstream()
        await jetstream.add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, max_age=2 * DAY, max_bytes=2**20)
    with capture_logs() as logs:
        async with opened_bus(fresh_nats.url) as bus:
            await bus.publish(ended(1))
            await restarted(bus, fresh_nats)
            await bus.publish(ended(2))
    (warning,) = [line for line in logs if line["event"] == "stream_differs"]
    assert (warning["log_level"], warning["max_age"], warning["max_bytes"]) == ("warning", str(2.0 * DAY), str(2**20))
    assert await stored(fresh_nats) == 2
    async with connected(fresh_nats.url) as other:
        kept = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
        assert (kept.max_age, kept.max_bytes) == (2 * DAY, 2**20)


@pytest.mark.parametrize("kept", [(30 * DAY, 2**30), (0, -1)], ids=["longer and larger", "without limit"])
async def test_a_stream_that_keeps_more_causes_no_warning(fresh_nats, kept):
    max_age, max_bytes = kept
    async with connected(fresh_nats.url) as other:
        wanted = {"max_age": max_age, "max_bytes": max_bytes, "duplicate_window": 3600}
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, **wanted)
    with capture_logs() as logs:
        async with opened_bus(fresh_nats.url) as bus:
            await bus.publish(ended(1))
    assert "stream_differs" not in [line["event"] for line in logs]


@pytest.mark.parametrize("subjects", [["akosha.session.>"], ["akosha.session.>", "akosha.sync.*"], ["other"]])
async def test_a_stream_without_the_subjects_of_the_agent_is_not_used_until_it_is_fixed(fresh_nats, subjects):
    async with connected(fresh_nats.url) as other:
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=subjects)
        async with opened_bus(fresh_nats.url, ready=False) as bus:
            assert not bus.state.ready
            missing = [subject for subject in SUBJECTS if subject not in subjects]
            assert f"does not store {', '.join(missing)}" in bus.state.detail
            assert f"--subjects {','.join([*subjects, *missing])}" in bus.state.detail
            with pytest.raises(BusError):
                await bus.publish(ended(1))
            await other.jetstream().update_stream(name="AKOSHA_SYNC", subjects=SUBJECTS)
            await ready(bus)
            await bus.publish(ended(1))


async def test_without_jetstream_the_bus_is_not_ready_and_reports_the_reason(tmp_path):
    with running_nats(tmp_path, jetstream=False) as server:
        async with opened_bus(server.url, ready=False) as bus:
            assert not bus.state.ready
            assert "JetStream is enabled on the NATS server" in bus.state.detail
            with pytest.raises(BusError, match="JetStream"):
                await bus.publish(ended(1))
            server.kill()
            server.jetstream = True
            server.start()
            await ready(bus)
            await bus.publish(ended(1))
        assert await stored(server) == 1


@pytest.mark.parametrize("api", ["CONSUMER", "STREAM"])
async def test_a_missing_permission_is_reported_and_the_local_bus_is_used(tmp_path, api):
    config = password_config(permissions={"publish": {"deny": [f"$JS.API.{api}.>"]}})
    login, inbox = Login(user=USER, password=PASSWORD), RecordingHandler()
    with running_nats(tmp_path, config=config) as server:
        async with opened_bus(server.url, ready=False, login=login, patience={"connect": 0.3}) as nats:
            both = FailoverBus(nats, MemoryBus(CLOCK), progress_interval_seconds=1)
            await both.subscribe("akosha.session.>", inbox, durable="d")
            await until(lambda: "permissions violation" in nats.state.detail)
            assert not nats.state.ready
            assert f"$js.api.{api.lower()}." in nats.state.detail
            assert "allow it in the server's permissions for this user" in nats.state.detail
            assert both.state.name == "memory"
            assert nats.state.detail in both.state.detail
            await both.publish(ended(1))
            assert await inbox.wait_for_count(1) == ["e-1"]
            await both.aclose()


async def test_a_durable_consumer_has_the_documented_configuration(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.session.>", RecordingHandler(), durable="mac-ab-cloud")
        made = (await consumer(fresh_nats, "mac-ab-cloud")).config
    assert (made.ack_policy, made.max_ack_pending, made.max_deliver) == (AckPolicy.EXPLICIT, 1, -1)
    assert (made.ack_wait, made.inactive_threshold) == (60, 30 * DAY)
    assert (made.filter_subject, made.durable_name) == ("akosha.session.>", "mac-ab-cloud")


async def test_changed_settings_are_applied_to_an_existing_consumer_which_keeps_its_position(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus:
        inbox = RecordingHandler()
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.publish(ended(1))
        await inbox.wait_for_count(1)
    limits = Limits(inactive=3 * DAY)
    async with opened_bus(fresh_nats.url, patience={"ack_wait": 30}, limits=limits) as bus:
        inbox = RecordingHandler()
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        found = (await consumer(fresh_nats, "d")).config
        assert (found.ack_wait, found.inactive_threshold) == (30, 3 * DAY)
        await bus.publish(ended(2))
        assert await inbox.wait_for_count(1) == ["e-2"]


async def event_unacked_by_a_killed_client(server) -> None:
    """The durable `d` has acked e-1. A client that was killed received e-2 and did not ack it. e-3 is pending."""
    async with opened_bus(server.url) as bus:
        inbox = RecordingHandler()
        subscription = await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.publish(ended(1))
        await inbox.wait_for_count(1)
        await subscription.stop()
        await bus.publish(ended(2))
        await bus.publish(ended(3))
    async with connected(server.url) as killed:
        subscription = await killed.jetstream().pull_subscribe_bind(durable="d", stream="AKOSHA_SYNC")
        (message,) = await subscription.fetch(1, timeout=SECONDS)
        assert message.metadata.sequence.stream == 2


async def test_the_owner_of_a_durable_gets_the_unacked_event_of_a_killed_process_at_once(fresh_nats):
    await event_unacked_by_a_killed_client(fresh_nats)
    inbox = RecordingHandler()
    async with opened_bus(fresh_nats.url, own_durables=True) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        assert await inbox.wait_for_count(2) == ["e-2", "e-3"]


async def test_a_half_open_connection_takes_no_event_from_the_owner_of_a_durable(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus:
        await (await bus.subscribe("akosha.session.>", RecordingHandler(), durable="d")).stop()
    inbox = RecordingHandler()
    async with connected(fresh_nats.url) as half_open:
        pull = await half_open.jetstream().pull_subscribe_bind(durable="d", stream="AKOSHA_SYNC")
        waiting = asyncio.create_task(pull.fetch(1, timeout=60))
        await until(lambda: half_open.stats["out_msgs"] >= 1)
        await half_open.flush()
        async with opened_bus(fresh_nats.url, own_durables=True) as bus:
            await bus.subscribe("akosha.session.>", inbox, durable="d")
            await bus.publish(ended(1))
            received = await inbox.wait_for_event("e-1")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert received


async def test_a_shared_durable_leaves_unacked_events_to_their_receivers(fresh_nats):
    await event_unacked_by_a_killed_client(fresh_nats)
    inbox = RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        found = await consumer(fresh_nats, "d")
        assert (found.num_ack_pending, found.num_pending, inbox.ids) == (1, 1, [])


async def test_an_event_published_twice_is_stored_once_for_each_system(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus:
        for event in (ended(1), ended(1), ended(1, "pc"), ended(1, "pc")):
            await bus.publish(event)
        await restarted(bus, fresh_nats)
        await bus.publish(ended(1))
    assert await stored(fresh_nats) == 2


async def test_a_new_progress_subscription_does_not_move_events_to_the_in_process_bus(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.sync.>", RecordingHandler(), durable="one")
        await ready(bus)
        states = []
        bus.on_change(lambda: states.append(bus.state.ready))
        listening = await bus.subscribe("akosha.progress.*", RecordingHandler())
        await listening.stop()
        assert bus.state.ready
        assert False not in states


async def test_an_ephemeral_subscription_continues_over_a_restart_without_gap_or_duplicate(fresh_nats):
    inbox = RecordingHandler()
    async with opened_bus(fresh_nats.url, patience={"reconnect": 0.3, "reconnect_max": 0.3}) as bus:
        subscription = await bus.subscribe("akosha.>", inbox)
        await bus.publish(ended(1))
        await handled(1, subscription)
        lost = bus._connection.client().lost
        fresh_nats.stop()
        await lost.wait()
        fresh_nats.start()
        async with connected(fresh_nats.url) as other:
            await other.jetstream().publish(ended(2).subject, CODEC.encode(ended(2)))
        await ready(bus)
        await bus.publish(ended(3))
        await bus.publish(progress(4))
        seen = await inbox.wait_for_count(4)
        assert [name for name in seen if name != "p-4"] == ["e-1", "e-2", "e-3"]


@pytest.fixture
def short_pulls(monkeypatch):
    """Repeat a request for the next event soon: the server does not always notify one whose stream was deleted."""
    monkeypatch.setattr(consumer_module, "MISSED_SECONDS", 1.0)


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_stream_deleted_during_a_connection_is_created_again_and_reported(fresh_nats, durable, short_pulls):
    inbox, reported = RecordingHandler(), asyncio.Event()
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        subscription = await bus.subscribe("akosha.session.>", inbox, durable=durable)
        await bus.publish(ended(1))
        await handled(1, subscription)
        before = bus.stream
        bus.on_change(reported.set)
        await other.jsm().delete_stream("AKOSHA_SYNC")
        async with asyncio.timeout(SECONDS):
            await reported.wait()
        await until(lambda: bus.stream != before)
        assert bus.stream.has_lost(before)
        await ready(bus)
        await bus.publish(ended(2))
        assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


async def test_a_stream_deleted_while_an_event_is_handled_is_created_again(fresh_nats, monkeypatch):
    monkeypatch.setattr(messages_module, "ACK_SECONDS", 0.2)

    async def delete_and_ack(message) -> None:
        await other.jsm().delete_stream("AKOSHA_SYNC")
        deleted.set()
        await message.ack()

    inbox, deleted = RecordingHandler(delete_and_ack), asyncio.Event()
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.publish(ended(1))
        await deleted.wait()
        await bus.publish(ended(2))
        assert await inbox.wait_for_event("e-2")


async def test_a_stream_deleted_without_subscriptions_is_created_again_by_the_next_publish(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        await bus.publish(ended(1))
        before, reported = bus.stream, asyncio.Event()
        bus.on_change(reported.set)
        await other.jsm().delete_stream("AKOSHA_SYNC")
        await bus.publish(ended(2))
        assert bus.stream.has_lost(before)
        assert reported.is_set()
    assert await stored(fresh_nats) == 1


async def is_published(bus, event) -> bool:
    try:
        await bus.publish(event)
    except BusError:
        return False
    return True


async def test_each_subscription_of_a_deleted_stream_continues_even_if_no_pull_is_answered(fresh_nats, monkeypatch):
    """The server does not notify every waiting pull of a deleted consumer, and sometimes none; a publish fails."""
    original = consumer_module.Pull.next

    async def next_or_never(pull):
        try:
            return await original(pull)
        except BusError:
            if not bus._connection.client().lost.is_set():
                await asyncio.Event().wait()
            raise

    monkeypatch.setattr(consumer_module.Pull, "next", next_or_never)
    first, second = RecordingHandler(), RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        subscriptions = [
            await bus.subscribe("akosha.session.>", inbox, durable=name)
            for name, inbox in (("first", first), ("second", second))
        ]
        await bus.publish(ended(1))
        await handled(1, *subscriptions)
        await other.jsm().delete_stream("AKOSHA_SYNC")
        async with asyncio.timeout(SECONDS):
            while not await is_published(bus, ended(2)):
                await asyncio.sleep(0.01)
        assert await first.wait_for_count(2) == ["e-1", "e-2"]
        assert await second.wait_for_count(2) == ["e-1", "e-2"]


async def test_a_stream_replaced_before_a_reconnection_is_reported_before_the_subscriptions_are_restored(
    fresh_nats, monkeypatch
):
    """Results wait for the stream, not for a subscription that cannot be restored."""
    marks = []

    async def never(*_args):
        await asyncio.Event().wait()

    async with opened_bus(fresh_nats.url, own_durables=True) as bus:
        await bus.subscribe("akosha.session.>", RecordingHandler(), durable="d")
        await bus.publish(ended(1))
        before, lost = bus.stream, bus._connection.client().lost
        monkeypatch.setattr(DurableConsumer, "ensure", never)
        bus.on_change(lambda: marks.append((bus._connection.is_up, bus.stream)))
        fresh_nats.restart(wipe=True)
        await lost.wait()
        await until(lambda: any(up and mark.has_lost(before) for up, mark in marks))
        assert not bus.state.ready


async def test_a_consumer_deleted_during_a_connection_is_created_again(fresh_nats, short_pulls):
    durable, ephemeral = RecordingHandler(), RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        one = await bus.subscribe("akosha.session.>", durable, durable="d")
        another = await bus.subscribe("akosha.session.>", ephemeral)
        await bus.publish(ended(1))
        await handled(1, one, another)
        for found in await other.jetstream().consumers_info("AKOSHA_SYNC"):
            await other.jetstream().delete_consumer("AKOSHA_SYNC", found.name)
        await bus.publish(ended(2))
        # A durable that was deleted on the server starts again at the oldest event.
        assert await durable.wait_for_count(3) == ["e-1", "e-1", "e-2"]
        assert await ephemeral.wait_for_count(2) == ["e-1", "e-2"]


async def test_subscriptions_continue_after_the_stream_is_purged(fresh_nats):
    durable, ephemeral = RecordingHandler(), RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        one = await bus.subscribe("akosha.session.>", durable, durable="d")
        another = await bus.subscribe("akosha.session.>", ephemeral)
        await bus.publish(ended(1))
        await handled(1, one, another)
        await other.jsm().purge_stream("AKOSHA_SYNC")
        await restarted(bus, fresh_nats)
        await bus.publish(ended(2))
        assert await durable.wait_for_count(2) == ["e-1", "e-2"]
        assert await ephemeral.wait_for_count(2) == ["e-1", "e-2"]


async def test_subscriptions_continue_after_the_server_restarts_with_an_empty_store(fresh_nats):
    durable, ephemeral = RecordingHandler(), RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus:
        one = await bus.subscribe("akosha.session.>", durable, durable="d")
        another = await bus.subscribe("akosha.session.>", ephemeral)
        for number in range(1, 4):
            await bus.publish(ended(number))
        await handled(3, one, another)
        before, lost = bus.stream, bus._connection.client().lost
        fresh_nats.restart(wipe=True)
        await lost.wait()
        await ready(bus)
        assert bus.stream.has_lost(before)
        await bus.publish(ended(4))
        assert await durable.wait_for_count(4) == ["e-1", "e-2", "e-3", "e-4"]
        assert await ephemeral.wait_for_count(4) == ["e-1", "e-2", "e-3", "e-4"]


@pytest.mark.parametrize("own", [True, False])
async def test_an_ack_lost_with_the_connection_does_not_block_an_owned_durable(fresh_nats, own):
    async def break_and_ack(message) -> None:
        break_connection(bus)
        await message.ack()

    inbox = RecordingHandler(break_and_ack)
    async with opened_bus(fresh_nats.url, own_durables=own) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.publish(ended(1))
        await inbox.wait_for_count(1)
        await until(lambda: not bus.state.ready)
        await ready(bus)
        await bus.publish(ended(2))
        if own:
            assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]
        else:
            assert (await consumer(fresh_nats, "d")).num_ack_pending == 1
            assert inbox.ids == ["e-1"]


async def test_a_handler_outlives_its_connection_and_its_event_is_delivered_again(fresh_nats):
    proceed = asyncio.Event()

    async def work(message) -> None:
        break_connection(bus)
        await proceed.wait()
        await message.in_progress()
        await message.ack()

    inbox = RecordingHandler(work)
    async with opened_bus(fresh_nats.url, own_durables=True) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        lost = bus._connection.client().lost
        await bus.publish(ended(1))
        await inbox.wait_for_count(1)
        await lost.wait()
        async with asyncio.timeout(SECONDS):
            await bus._connection.wait()
        proceed.set()
        assert await inbox.wait_for_count(2) == ["e-1", "e-1"]


async def test_publishing_to_a_hanging_server_fails_in_bounded_time_and_the_connection_is_replaced(fresh_nats):
    inbox = RecordingHandler()
    patience = {"connect": 0.3, "ping": 0.2, "ping_timeout": 0.2}
    async with opened_bus(fresh_nats.url, patience=patience, own_durables=True) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        lost = bus._connection.client().lost
        fresh_nats.pause()
        for number in (8, 9):
            began = time.monotonic()
            with pytest.raises(BusError) as failure:
                await bus.publish(ended(number))
            assert failure.value.transient
            assert time.monotonic() - began < 1
        async with asyncio.timeout(SECONDS):
            await lost.wait()
        assert not bus.state.ready
        assert bus.stream.sequence == 0, "the last known sequence number is kept"
        fresh_nats.resume()
        await ready(bus)
        await bus.publish(ended(1))
        assert await inbox.wait_for_event("e-1")


async def test_a_hanging_server_is_noticed_without_publishing(fresh_nats):
    async with opened_bus(fresh_nats.url, patience={"connect": 0.3, "ping": 0.2, "ping_timeout": 0.2}) as bus:
        lost = bus._connection.client().lost
        fresh_nats.pause()
        async with asyncio.timeout(SECONDS):
            await lost.wait()
        await until(lambda: "no answer to a ping in 0.2 s" in bus._connection.last_error.message)
        fresh_nats.resume()
        await ready(bus)


@pytest.mark.parametrize("first", ["dead", "without-jetstream", "with a foreign stream"])
async def test_the_first_usable_server_of_several_is_used(tmp_path, fresh_nats, monkeypatch, first):
    monkeypatch.setattr("random.sample", lambda servers, _: list(servers))
    with running_nats(tmp_path, jetstream=first != "without-jetstream") as unusable:
        if first == "dead":
            unusable.kill()
        elif first == "with a foreign stream":
            async with connected(unusable.url) as other:
                await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=["other"])
        async with opened_bus(unusable.url, fresh_nats.url) as bus:
            await bus.publish(ended(1))
    assert await stored(fresh_nats) == 1


async def test_publishing_waits_for_the_connection_if_requested(fresh_nats):
    fresh_nats.stop()
    async with opened_bus(fresh_nats.url, wait_for_connection=True, ready=False) as bus:
        publishing = [asyncio.create_task(bus.publish(ended(number))) for number in range(3)]
        await bus._connection.first_attempt(SECONDS)
        assert not any(task.done() for task in publishing)
        fresh_nats.start()
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*publishing)
    assert await stored(fresh_nats) == 3


async def test_a_subscription_made_while_nats_is_down_starts_when_it_is_up(fresh_nats):
    inbox = RecordingHandler()
    fresh_nats.stop()
    async with opened_bus(fresh_nats.url, ready=False) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        assert not bus.state.ready
        fresh_nats.start()
        await ready(bus)
        await bus.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


async def test_a_lost_pull_request_is_repeated(fresh_nats, monkeypatch):
    monkeypatch.setattr(consumer_module, "MISSED_SECONDS", 0.1)
    monkeypatch.setattr(subscription_module, "FIRST_PAUSE_SECONDS", 0.01)
    inbox, lost, publish = RecordingHandler(), [], client_module.Client.publish

    async def lose_the_first(client, subject, *args, **how) -> None:
        if ".MSG.NEXT." in subject and not lost:
            lost.append(subject)
            return
        await publish(client, subject, *args, **how)

    monkeypatch.setattr(client_module.Client, "publish", lose_the_first)
    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]
    assert lost


async def test_a_missing_publish_permission_is_reported_and_the_local_bus_is_used(tmp_path):
    config = password_config(permissions={"publish": {"deny": ["akosha.>"]}})
    login, inbox = Login(user=USER, password=PASSWORD), RecordingHandler()
    with running_nats(tmp_path, config=config) as server:
        async with opened_bus(server.url, login=login, patience={"connect": 0.2}) as nats:
            with pytest.raises(BusError, match="permissions violation for publish") as failure:
                await nats.publish(ended(1))
            assert failure.value.transient
            both = FailoverBus(nats, MemoryBus(CLOCK), progress_interval_seconds=1)
            await both.subscribe("akosha.session.>", inbox)
            await both.publish(ended(2))
            assert await inbox.wait_for_count(1) == ["e-2"]
            await both.aclose()


async def test_hundreds_of_events_are_each_acked_once_and_in_order_by_an_unreliable_handler(fresh_nats):
    chance, count, acked, failed = random.Random(7), 300, [], set()
    complete = asyncio.Event()

    async def handle(message) -> None:
        luck, event_id = chance.random(), message.event.id
        if luck < 0.02 and event_id not in failed:
            failed.add(event_id)
            raise ValueError(event_id)
        if luck < 0.1:
            await message.nak()
            return
        if luck < 0.2:
            await message.in_progress()
        await message.ack()
        acked.append(event_id)
        if len(acked) == count:
            complete.set()

    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.session.>", handle, durable="d")
        for number in range(count):
            await bus.publish(ended(number))
        async with asyncio.timeout(60):
            await complete.wait()
        assert acked == [f"e-{number}" for number in range(count)]
        assert failed
        found = await consumer(fresh_nats, "d")
        assert (found.ack_floor.stream_seq, found.num_ack_pending, found.num_pending) == (count, 0, 0)


async def test_requests_are_answered_before_and_after_a_restart(fresh_nats):
    async def answer(request: bytes) -> bytes:
        return request.upper()

    async with opened_bus(fresh_nats.url) as bus:
        answering = await bus.respond("akosha.agent.mac.status", answer)
        for request in (b"before", b"after"):
            async with connected(fresh_nats.url) as other:
                replies = [other.request("akosha.agent.mac.status", request, timeout=SECONDS) for _ in range(5)]
                assert [reply.data for reply in await asyncio.gather(*replies)] == [request.upper()] * 5
            await restarted(bus, fresh_nats, end="kill")
            async with asyncio.timeout(SECONDS):
                await answering.ready.wait()


async def test_closing_while_the_server_hangs_leaves_no_task_and_no_socket(fresh_nats, monkeypatch):
    monkeypatch.setattr(client_module, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(subscription_module, "CLEANUP_SECONDS", 0.2)
    tasks, held, hanging = asyncio.all_tasks(), sockets(), asyncio.Event()

    async def hang(message) -> None:
        hanging.set()
        await asyncio.Event().wait()

    async with opened_bus(fresh_nats.url, patience={"connect": 0.3}) as bus:
        await bus.subscribe("akosha.session.>", hang, durable="d")
        await bus.subscribe("akosha.>", RecordingHandler())
        await bus.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        await bus.publish(ended(1))
        await hanging.wait()
        fresh_nats.pause()
        async with asyncio.timeout(SECONDS):
            await bus.aclose()
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert sockets() <= held
    with pytest.raises(StateError, match="closed"):
        await bus.publish(ended(2))


async def test_closing_while_nats_is_down_leaves_no_task_and_no_socket(fresh_nats):
    fresh_nats.stop()
    tasks, held = asyncio.all_tasks(), sockets()
    async with opened_bus(fresh_nats.url, ready=False) as bus:
        await bus.subscribe("akosha.>", RecordingHandler(), durable="d")
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert sockets() <= held


async def test_closing_at_any_moment_finishes_and_leaves_no_task(fresh_nats):
    tasks, rounds, numbers = asyncio.all_tasks(), 20, itertools.count()

    async def life(turns: float) -> int:
        """Start a bus and subscriptions; close it after this many turns of the event loop, or at the first delivery."""
        inbox, turn = RecordingHandler(), 0
        bus = NatsBus.begin(options(fresh_nats.url, own_durables=True), CODEC, clock=CLOCK, wait_for_connection=True)
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        await bus.subscribe("akosha.>", RecordingHandler())
        await bus.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        publishing = [asyncio.create_task(bus.publish(ended(next(numbers)))) for _ in range(5)]
        while turn < turns and not inbox.ids:
            await asyncio.sleep(0)
            turn += 1
        async with asyncio.timeout(SECONDS):
            await bus.aclose()
            await asyncio.gather(*publishing, return_exceptions=True)
        await until(lambda: asyncio.all_tasks() <= tasks)
        return turn

    async with asyncio.timeout(4 * SECONDS):
        full = await life(math.inf)
        for number in range(rounds):
            await life(full * number / rounds)
