"""The buses on a real NATS server: stream, consumers and subscriptions, and the loss of any of them or the server."""

import asyncio
import itertools
import json
import math
import random
from dataclasses import replace

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
)
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.nats.consumer import NatsConsumer
from agent.domain.errors import BusError, StateError
from tests.support import values
from tests.support.nats_bus import (
    CLOCK,
    CODEC,
    SECONDS,
    Hang,
    RecordingHandler,
    ended,
    opened_buses,
    options,
    progress,
    publish_until_accepted,
    sockets,
    until,
)
from tests.support.servers.nats import connected, delete_streams, running_nats
from tests.support.servers.nats_credentials import PASSWORD, USER, password_config

pytest_plugins = ["tests.support.servers.fixtures"]

SUBJECTS = ["akosha.session.>", "akosha.sync.>", "akosha.ingest.>", "akosha.archive.>"]
DAY = 86_400


async def ready(buses) -> None:
    async with asyncio.timeout(SECONDS):
        await buses.durable.wait_until_ready()


async def restarted(buses, server, *, end="stop") -> None:
    """Stop the server, wait until the buses have noticed, start the server and wait until they are ready."""
    lost = buses._connection.client().lost
    getattr(server, end)()
    async with asyncio.timeout(SECONDS):
        await lost.wait()
    server.start()
    await ready(buses)


async def acked(server, sequence: int, *durables: str) -> None:
    """Return when the server has the consumers' acks up to this sequence number of the stream."""
    async with asyncio.timeout(SECONDS):
        for durable in durables:
            while (await consumer(server, durable)).ack_floor.stream_seq < sequence:
                await asyncio.sleep(0.01)


def break_connection(buses) -> None:
    buses._connection.client()._transport._io_writer.transport.abort()


async def stored(server) -> int:
    async with connected(server.url) as other:
        return (await other.jetstream().stream_info("AKOSHA_SYNC")).state.messages


async def consumer(server, name: str):
    async with connected(server.url) as other:
        return await other.jetstream().consumer_info("AKOSHA_SYNC", name)


async def test_the_stream_is_created_with_the_documented_configuration(fresh_nats):
    async with opened_buses(fresh_nats.url), connected(fresh_nats.url) as other:
        made = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
        assert made.subjects == SUBJECTS
        assert (made.retention, made.discard) == (RetentionPolicy.LIMITS, DiscardPolicy.OLD)
        assert (made.storage, made.num_replicas) == (StorageType.FILE, 1)
        assert (made.max_age, made.max_bytes, made.duplicate_window) == (7 * DAY, 256 * 2**20, 600)
        assert (made.max_msgs, made.max_consumers, made.max_msg_size, made.max_msgs_per_subject) == (-1, 10_000, -1, -1)
        assert made.allow_direct


async def test_an_existing_stream_is_used_unchanged_with_one_warning(fresh_nats):
    async with connected(fresh_nats.url) as other:
        jetstream = other.jetstream()
        await jetstream.add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, max_age=2 * DAY, max_bytes=2**20)
    with capture_logs() as logs:
        async with opened_buses(fresh_nats.url) as buses:
            await buses.durable.publish(ended(1))
            await restarted(buses, fresh_nats)
            await buses.durable.publish(ended(2))
    (warning,) = [line for line in logs if line["event"] == "stream_differs"]
    assert "keeps events for 172800 s only; keeps 1,048,576 bytes only" in warning["lacks"]
    assert "nats stream edit AKOSHA_SYNC --allow-direct " in warning["hint"]
    assert await stored(fresh_nats) == 2
    async with connected(fresh_nats.url) as other:
        kept = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
        assert (kept.max_age, kept.max_bytes) == (2 * DAY, 2**20)


@pytest.mark.parametrize("kept", [(30 * DAY, 2**30), (0, -1)], ids=["longer and larger", "without limit"])
async def test_a_stream_that_keeps_more_causes_no_warning(fresh_nats, kept):
    max_age, max_bytes = kept
    async with connected(fresh_nats.url) as other:
        wanted = {"max_age": max_age, "max_bytes": max_bytes, "duplicate_window": 3600, "allow_direct": True}
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, max_consumers=20_000, **wanted)
    with capture_logs() as logs:
        async with opened_buses(fresh_nats.url) as buses:
            await buses.durable.publish(ended(1))
    assert "stream_differs" not in [line["event"] for line in logs]


@pytest.mark.parametrize("subjects", [["akosha.session.>"], ["akosha.session.>", "akosha.sync.*"], ["other"]])
async def test_a_stream_without_the_subjects_of_the_agent_is_not_used_until_it_is_fixed(fresh_nats, subjects):
    async with connected(fresh_nats.url) as other:
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=subjects)
        async with opened_buses(fresh_nats.url, ready=False) as buses:
            await until(lambda: not buses.durable.state.ready)
            missing = [subject for subject in SUBJECTS if subject not in subjects]
            assert f"does not store {', '.join(missing)}" in buses.durable.state.detail
            assert f"--subjects {','.join([*subjects, *missing])}" in buses.durable.state.detail
            with pytest.raises(BusError):
                await buses.durable.publish(values.skipped())
            await other.jetstream().update_stream(name="AKOSHA_SYNC", subjects=SUBJECTS)
            buses.durable.check_connection()
            await ready(buses)
            await buses.durable.publish(values.skipped())


async def test_without_jetstream_requests_flow_and_the_durable_bus_reports_the_reason(tmp_path):
    inbox = RecordingHandler()
    with running_nats(tmp_path, jetstream=False) as server:
        async with opened_buses(server.url, ready=False) as buses:
            await until(lambda: not buses.durable.state.ready)
            assert "JetStream is enabled on the NATS server" in buses.durable.state.detail
            with pytest.raises(BusError, match="JetStream"):
                await buses.durable.publish(ended(1))
            with pytest.raises(BusError, match="JetStream") as unread:
                await buses.durable.newest(ended(1).subject)
            assert unread.value.transient
            assert buses.volatile.state.ready
            await buses.volatile.subscribe("akosha.session.>", inbox)
            await buses.volatile.publish(ended(1))
            assert await inbox.wait_for_count(1) == ["e-1"]
            server.kill()
            server.jetstream = True
            server.start()
            await ready(buses)
            await buses.durable.publish(ended(1))
        assert await stored(server) == 1


def login_with(**permissions) -> dict:
    return {"config": password_config(permissions=permissions)}


LOGIN = Login(user=USER, password=PASSWORD)


@pytest.mark.parametrize(("denied", "named"), [(">", "info"), ("MSG.NEXT.>", "msg.next")])
async def test_a_consumer_without_permission_reports_it_at_once_and_once(tmp_path, monkeypatch, denied, named):
    monkeypatch.setattr(consumer_module, "FIRST_PAUSE_SECONDS", 0.01)
    refused, interrupted = [], NatsConsumer._interrupted

    async def counted(consumer, client, error) -> None:
        refused.append(error)
        await interrupted(consumer, client, error)

    monkeypatch.setattr(NatsConsumer, "_interrupted", counted)
    with running_nats(tmp_path, **login_with(publish={"deny": [f"$JS.API.CONSUMER.{denied}"]})) as server:
        async with opened_buses(server.url, login=LOGIN, patience={"connect": 60}) as buses:
            changes = []
            buses.durable.on_change(lambda: changes.append(buses.durable.state.ready))
            await buses.durable.consume("akosha.session.>", RecordingHandler(), durable="d")
            await until(lambda: len(refused) > 3)
            assert changes == [False]
            detail = buses.durable.state.detail
            assert f"$js.api.consumer.{named}" in detail
            assert "allow it in the server's permissions for this user" in detail
            assert not buses.durable.state.ready
            assert buses.volatile.state.ready


async def test_the_consumers_of_the_stream_are_counted_when_it_is_examined(tmp_path):
    with running_nats(tmp_path) as server:
        async with opened_buses(server.url) as agent, opened_buses(server.url) as program:
            await ready(agent)
            assert agent.durable.consumers == 0
            await program.durable.consume("akosha.session.>", RecordingHandler(), durable="program")
            agent.durable.check_connection()
            await until(lambda: agent.durable.consumers == 1)
            lost = agent._connection.client().lost
            server.stop()
            async with asyncio.timeout(SECONDS):
                await lost.wait()
            assert agent.durable.consumers is None


async def test_a_stream_that_may_not_be_examined_is_used(tmp_path):
    """A lost stream shows in the sequence of the confirmation, but a duplicate's sequence shows nothing."""
    admin = {"user": "admin", "password": PASSWORD}
    users = [admin, {"user": USER, "password": PASSWORD, "permissions": {"publish": {"deny": ["$JS.API.STREAM.>"]}}}]

    async def make_stream() -> None:
        async with connected(server.url, **admin) as other:
            await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS)

    with running_nats(tmp_path, config=f"authorization: {json.dumps({'users': users})}") as server:
        await make_stream()
        async with opened_buses(server.url, login=LOGIN, patience={"connect": 60}) as buses:
            for number in range(3):
                await buses.durable.publish(ended(number))
            before = buses.durable.stream
            assert (before.created, before.sequence, buses.durable.consumers) == ("", 3, None)
            await buses.durable.publish(ended(1))
            assert buses.durable.stream == before
            await delete_streams(server, **admin)
            await make_stream()
            await buses.durable.publish(ended(4))
            assert buses.durable.stream.has_lost(before)


@pytest.mark.parametrize("denied", ["publish", "subscribe"])
async def test_a_missing_permission_for_requests_is_reported_and_the_local_bus_is_used(tmp_path, denied):
    inbox = RecordingHandler()
    with running_nats(tmp_path, **login_with(**{denied: {"deny": ["akosha.session.>"]}})) as server:
        async with opened_buses(server.url, login=LOGIN) as buses:
            both = FailoverBus(buses.volatile, MemoryBus(CLOCK))
            changes = []
            both.on_change(lambda: changes.append(both.state.name))
            await both.subscribe("akosha.session.>", inbox)
            await both.publish(ended(1))  # with no permission to publish, it is lost: the answer comes later
            await until(lambda: both.state.name == "memory")
            assert changes[-1] == "memory"
            assert "permissions violation" in both.state.detail
            await both.publish(ended(2))
            assert await inbox.wait_for_event("e-2")
            await both.aclose()


async def test_a_missing_permission_for_progress_does_not_matter(tmp_path):
    with running_nats(tmp_path, **login_with(publish={"deny": ["akosha.progress.>"]})) as server:
        async with opened_buses(server.url, login=LOGIN) as buses:
            changes = []
            buses.volatile.on_change(lambda: changes.append(buses.volatile.state))
            await buses.volatile.publish(progress(1))
            await buses._connection.client().confirm_sent()
            assert buses.volatile.state.ready
            assert changes == []


async def test_a_repeated_denial_is_one_change_of_the_bus(tmp_path):
    with running_nats(tmp_path, **login_with(publish={"deny": ["akosha.session.>"]})) as server:
        async with opened_buses(server.url, login=LOGIN) as buses:
            changes = []
            buses.volatile.on_change(lambda: changes.append(buses.volatile.state.ready))
            for number in range(3):
                await buses.volatile.publish(ended(number))
                await buses._connection.client().confirm_sent()
            assert changes == [False]


async def test_a_reply_subject_that_the_server_denies_does_not_change_the_bus(tmp_path):
    """Any program that may send a request chooses its reply subject."""
    subject, forged = "akosha.agent.mac.status", ["forbidden.1", "akosha.session.mac.ended", "_INBOX.stolen"]
    denied = ["forbidden.>", "akosha.session.>", "_INBOX.stolen"]
    users = [
        {"user": "admin", "password": PASSWORD},
        {"user": USER, "password": PASSWORD, "permissions": {"publish": {"deny": denied}}},
    ]
    with running_nats(tmp_path, config=f"authorization: {json.dumps({'users': users})}") as server:
        async with opened_buses(server.url, login=LOGIN) as buses:
            changes = []
            buses.volatile.on_change(lambda: changes.append(buses.volatile.state))
            await buses.volatile.subscribe("akosha.session.>", RecordingHandler())
            await buses.volatile.respond(subject, echo)
            async with connected(server.url, user="admin", password=PASSWORD) as admin:
                for reply in forged:
                    await admin.publish(subject, b"", reply=reply)
                assert (await admin.request(subject, b"1", timeout=SECONDS)).data == b"1"
            await buses._connection.client().confirm_sent()
            assert changes == []
            assert buses.volatile.state.ready
            assert await buses.durable.newest("akosha.sync.mac.succeeded") is None


async def test_without_permission_to_receive_answers_each_request_fails_at_once(tmp_path):
    """The time-out is longer than the test's."""
    with running_nats(tmp_path, **login_with(subscribe={"deny": ["_INBOX.>"]})) as server:
        async with asyncio.timeout(SECONDS), opened_buses(server.url, login=LOGIN, patience={"connect": 60}) as buses:
            for _ in range(3):
                with pytest.raises(BusError, match=r"(?i)permissions violation for subscription"):
                    await buses.durable.publish(ended(1))
                with pytest.raises(BusError, match=r"(?i)permissions violation for subscription") as unread:
                    await buses.durable.newest(ended(1).subject)
                assert not unread.value.transient
            assert buses.volatile.state.ready
            assert "_inbox" in buses.durable.state.detail.lower()


async def echo(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("refused", ["no JetStream", "wrong subjects", "denied"])
async def test_a_repeated_refusal_of_the_stream_is_reported_once(tmp_path, refused):
    """Each report makes the agent publish again: one for each refusal would never end."""
    denied = login_with(publish={"deny": ["akosha.session.>"]}) if refused == "denied" else {}
    with running_nats(tmp_path, jetstream=refused != "no JetStream", **denied) as server:
        if refused == "wrong subjects":
            async with connected(server.url) as other:
                await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=["akosha.session.>"])
        async with opened_buses(server.url, ready=False, login=LOGIN if denied else Login()) as buses:
            reports = []
            for number in range(4):
                with pytest.raises(BusError):
                    await buses.durable.publish(ended(1))
                await buses.durable._stream_examined()
                if number == 0:
                    buses.durable.on_change(lambda: reports.append(buses.durable.state))
            assert not buses.durable.state.ready
            assert reports == []


async def test_the_newest_event_on_a_subject_is_read_without_a_consumer(fresh_nats):
    subject = ended(1).subject
    async with opened_buses(fresh_nats.url) as buses:
        assert await buses.durable.newest(subject) is None
        for number in (1, 2):
            await buses.volatile.publish(ended(number))
        await buses.durable.publish(ended(3, "pc"))
        newest = await buses.durable.newest(subject)
        assert newest.event == ended(2)
        assert newest.position.startswith("2 20")
        async with connected(fresh_nats.url) as other:
            for position, rubbish in ((4, b"rubbish"), (5, b"")):
                await other.jetstream().publish(subject, rubbish)
                newest = await buses.durable.newest(subject)
                assert (newest.event, newest.position[:4]) == (None, f"{position} 20")
            await other.jetstream().update_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, allow_direct=False)
        with pytest.raises(BusError, match="JetStream does not answer"):
            await buses.durable.newest(subject)
        assert await consumers(fresh_nats) == []


async def consumers(server) -> list[str]:
    async with connected(server.url) as other:
        return [found.name for found in await other.jetstream().consumers_info("AKOSHA_SYNC")]


async def test_a_full_stream_refuses_results_until_it_has_room_and_requests_still_arrive(fresh_nats):
    inbox = RecordingHandler()
    async with connected(fresh_nats.url) as other:
        full = {"max_msgs": 1, "discard": DiscardPolicy.NEW, "allow_direct": True}
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, **full)
        async with opened_buses(fresh_nats.url) as buses:
            await buses.volatile.subscribe("akosha.session.>", inbox)
            for number in (1, 2):
                await buses.volatile.publish(ended(number))
            assert await inbox.wait_for_count(2) == ["e-1", "e-2"]
            with pytest.raises(BusError, match="maximum messages exceeded") as failure:
                await buses.durable.publish(values.skipped())
            assert failure.value.transient
            await other.jsm().purge_stream("AKOSHA_SYNC")
            await publish_until_accepted(buses.durable, values.skipped())


async def test_a_new_durable_at_the_consumer_limit_is_refused_with_the_cure(fresh_nats):
    async with connected(fresh_nats.url) as other:
        jetstream = other.jetstream()
        await jetstream.add_stream(name="AKOSHA_SYNC", subjects=SUBJECTS, max_consumers=1, allow_direct=True)
        async with opened_buses(fresh_nats.url) as buses, opened_buses(fresh_nats.url) as another:
            await buses.durable.consume("akosha.session.>", RecordingHandler(), durable="one")
            inbox = RecordingHandler()
            await another.durable.consume("akosha.session.>", inbox, durable="two")
            detail = another.durable.state.detail
            assert "maximum consumers limit reached" in detail
            assert "nats stream edit AKOSHA_SYNC --max-consumers 10000" in detail
            await buses.durable.publish(ended(1))
            found = (await jetstream.stream_info("AKOSHA_SYNC")).config
            await jetstream.update_stream(replace(found, max_consumers=10_000))
            assert await inbox.wait_for_count(1) == ["e-1"], "the consumer is made once the limit is raised"


async def test_the_volatile_bus_makes_no_consumer_and_an_idle_one_sends_nothing(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses:
        inbox = RecordingHandler()
        await buses.volatile.subscribe("akosha.session.>", inbox)
        await buses.volatile.publish(ended(1))
        await inbox.wait_for_count(1)
        await buses._connection.client().confirm_sent()
        sent = dict(buses._connection.client().stats)
        assert await consumers(fresh_nats) == []
        async with connected(fresh_nats.url) as other:
            for _ in range(20):
                await other.flush()
        assert buses._connection.client().stats == sent


async def test_a_durable_consumer_has_the_documented_configuration(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses:
        await buses.durable.consume("akosha.session.>", RecordingHandler(), durable="mac-ab-cloud")
        made = (await consumer(fresh_nats, "mac-ab-cloud")).config
    assert (made.ack_policy, made.max_ack_pending, made.max_deliver) == (AckPolicy.EXPLICIT, 1, -1)
    assert (made.ack_wait, made.inactive_threshold) == (60, 30 * DAY)
    assert (made.filter_subject, made.durable_name) == ("akosha.session.>", "mac-ab-cloud")


async def test_changed_settings_are_applied_to_an_existing_consumer_which_keeps_its_position(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses:
        inbox = RecordingHandler()
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        await acked(fresh_nats, 1, "d")
    limits = Limits(inactive=3 * DAY)
    async with opened_buses(fresh_nats.url, patience={"ack_wait": 30}, limits=limits) as buses:
        inbox = RecordingHandler()
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        found = (await consumer(fresh_nats, "d")).config
        assert (found.ack_wait, found.inactive_threshold) == (30, 3 * DAY)
        await buses.durable.publish(ended(2))
        assert await inbox.wait_for_count(1) == ["e-2"]


@pytest.mark.parametrize("ack_wait", [60, 30])
async def test_a_consumer_that_an_administrator_made_is_used_without_permission_to_create_one(tmp_path, ack_wait):
    admin = {"user": "admin", "password": PASSWORD}
    rights = {"publish": {"deny": ["$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DURABLE.CREATE.>"]}}
    users = json.dumps({"users": [admin, {"user": USER, "password": PASSWORD, "permissions": rights}]})
    inbox = RecordingHandler()
    with running_nats(tmp_path, config=f"authorization: {users}") as server:
        async with opened_buses(server.url, login=Login(user="admin", password=PASSWORD)) as buses:
            await buses.durable.consume("akosha.session.>", RecordingHandler(), durable="d")
        async with opened_buses(server.url, login=LOGIN, patience={"ack_wait": ack_wait}) as buses:
            await buses.durable.consume("akosha.session.>", inbox, durable="d")
            assert buses.durable.state.ready
            await buses.durable.publish(ended(1))
            assert await inbox.wait_for_count(1) == ["e-1"]
            await buses.durable.consume("akosha.sync.>", inbox, durable="other")
            assert "permissions violation" in buses.durable.state.detail


async def test_an_event_published_twice_is_stored_once_for_each_system(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses:
        for event in (ended(1), ended(1), ended(1, "pc"), ended(1, "pc")):
            await buses.durable.publish(event)
        await restarted(buses, fresh_nats)
        await buses.durable.publish(ended(1))
    assert await stored(fresh_nats) == 2


async def test_plain_subscriptions_continue_after_a_restart(fresh_nats):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url) as buses:
        subscription = await buses.volatile.subscribe("akosha.>", inbox)
        for number, end in enumerate(("stop", "kill")):
            await buses.volatile.publish(ended(number))
            await inbox.wait_for_count(number + 1)
            await restarted(buses, fresh_nats, end=end)
        await buses.volatile.publish(ended(2))
        assert await inbox.wait_for_count(3) == ["e-0", "e-1", "e-2"]
        await subscription.stop()
        async with asyncio.timeout(SECONDS):
            while "akosha.>" in await server_subscriptions(fresh_nats):
                pass


async def server_subscriptions(server):
    """Return the subjects of the server's subscriptions."""
    found = await asyncio.to_thread(server.monitor, "/subsz?subs=1&limit=1000")
    return [one["subject"] for one in found["subscriptions_list"]]


@pytest.fixture
def short_pulls(monkeypatch):
    """Repeat a request for the next event soon: the server does not always notify one whose stream was deleted."""
    monkeypatch.setattr(consumer_module, "PULL_SECONDS", 0.5)
    monkeypatch.setattr(consumer_module, "GRACE_SECONDS", 0.5)


async def test_a_stream_deleted_during_a_connection_is_created_again_and_reported(fresh_nats, short_pulls):
    inbox, reported = RecordingHandler(), asyncio.Event()
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        await acked(fresh_nats, 1, "d")
        before = buses.durable.stream
        buses.durable.on_change(reported.set)
        await other.jsm().delete_stream("AKOSHA_SYNC")
        async with asyncio.timeout(SECONDS):
            await reported.wait()
        await until(lambda: buses.durable.stream != before)
        assert buses.durable.stream.has_lost(before)
        await ready(buses)
        await buses.durable.publish(ended(2))
        assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


async def test_a_stream_deleted_while_an_event_is_handled_is_created_again(fresh_nats, monkeypatch, short_pulls):
    monkeypatch.setattr(consumer_module, "ACK_SECONDS", 0.2)

    async def delete(_event) -> None:
        await other.jsm().delete_stream("AKOSHA_SYNC")
        deleted.set()

    inbox, deleted = RecordingHandler(delete), asyncio.Event()
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        await deleted.wait()
        await publish_until_accepted(buses.durable, ended(2))
        assert await inbox.wait_for_event("e-2")


async def test_a_stream_deleted_without_subscriptions_is_created_again_by_the_next_publish(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.durable.publish(ended(1))
        before, reported = buses.durable.stream, asyncio.Event()
        buses.durable.on_change(reported.set)
        await other.jsm().delete_stream("AKOSHA_SYNC")
        with pytest.raises(BusError, match="the stream does not exist"):
            await buses.durable.publish(ended(2))
        await buses.durable.publish(ended(2))
        assert buses.durable.stream.has_lost(before)
        assert reported.is_set()
    assert await stored(fresh_nats) == 1


async def test_a_consumer_deleted_during_a_connection_is_created_again(fresh_nats, short_pulls):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        await acked(fresh_nats, 1, "d")
        await other.jetstream().delete_consumer("AKOSHA_SYNC", "d")
        await buses.durable.publish(ended(2))
        # A durable that was deleted on the server starts again at the oldest event.
        assert await inbox.wait_for_count(3) == ["e-1", "e-1", "e-2"]


async def test_a_consumer_continues_after_the_stream_is_purged_or_lost(fresh_nats):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        for number in range(1, 4):
            await buses.durable.publish(ended(number))
        await acked(fresh_nats, 3, "d")
        await other.jsm().purge_stream("AKOSHA_SYNC")
        await restarted(buses, fresh_nats)
        await buses.durable.publish(ended(4))
        assert await inbox.wait_for_count(4) == ["e-1", "e-2", "e-3", "e-4"]
        before, lost = buses.durable.stream, buses._connection.client().lost
        fresh_nats.restart(wipe=True)
        await lost.wait()
        await ready(buses)
        await until(lambda: buses.durable.stream.has_lost(before))
        await buses.durable.publish(ended(5))
        assert await inbox.wait_for_count(5) == ["e-1", "e-2", "e-3", "e-4", "e-5"]


async def test_a_handler_outlives_its_connection_and_its_ack_takes_the_next_one(fresh_nats):
    proceed = asyncio.Event()

    async def work(_event) -> None:
        break_connection(buses)
        await proceed.wait()

    inbox = RecordingHandler(work)
    async with opened_buses(fresh_nats.url) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        lost = buses._connection.client().lost
        await buses.durable.publish(ended(1))
        await inbox.wait_for_count(1)
        await lost.wait()
        async with asyncio.timeout(SECONDS):
            await buses._connection.wait()
        proceed.set()
        await acked(fresh_nats, 1, "d")
        await buses.durable.publish(ended(2))
        assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


async def test_publishing_to_a_hanging_server_fails_in_bounded_time_and_the_connection_is_replaced(fresh_nats):
    """An event that the server sent to the lost connection is delivered again after the ack wait."""
    inbox = RecordingHandler()
    patience = {"connect": 0.3, "ping": 0.2, "ping_timeout": 0.2, "ack_wait": 1}
    async with opened_buses(fresh_nats.url, patience=patience) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        lost = buses._connection.client().lost
        fresh_nats.pause()
        for number in (8, 9):
            async with asyncio.timeout(SECONDS):
                with pytest.raises(BusError) as failure:
                    await buses.durable.publish(ended(number))
            assert failure.value.transient
        async with asyncio.timeout(SECONDS):
            await lost.wait()
        assert not buses.durable.state.ready
        assert buses.durable.stream.sequence == 0, "the last known sequence number is kept"
        fresh_nats.resume()
        await ready(buses)
        await buses.durable.publish(ended(1))
        assert await inbox.wait_for_event("e-1")


async def test_a_hanging_server_is_noticed_without_publishing(fresh_nats):
    async with opened_buses(fresh_nats.url, patience={"connect": 0.3, "ping": 0.2, "ping_timeout": 0.2}) as buses:
        lost = buses._connection.client().lost
        fresh_nats.pause()
        async with asyncio.timeout(SECONDS):
            await lost.wait()
        await until(lambda: "no answer to a ping in 0.2 s" in buses._connection.last_error.message)
        fresh_nats.resume()
        await ready(buses)


async def test_a_published_request_makes_the_bus_check_its_connection(fresh_nats):
    """Nothing confirms a request: without a check, a dead connection would be noticed with the next regular ping."""
    async with opened_buses(fresh_nats.url, patience={"ping": 3600, "ping_timeout": 0.2}) as buses:
        lost = buses._connection.client().lost
        fresh_nats.pause()
        await buses.volatile.publish(ended(1))
        async with asyncio.timeout(SECONDS):
            await lost.wait()
        assert not buses.volatile.state.ready
        fresh_nats.resume()
        await ready(buses)


async def test_the_first_reachable_server_of_several_is_used(tmp_path, fresh_nats, monkeypatch):
    monkeypatch.setattr("random.sample", lambda servers, _: list(servers))
    with running_nats(tmp_path) as unusable:
        unusable.kill()
        async with opened_buses(unusable.url, fresh_nats.url) as buses:
            await buses.durable.publish(ended(1))
    assert await stored(fresh_nats) == 1


async def test_publishing_waits_for_the_connection_if_requested(fresh_nats):
    fresh_nats.stop()
    async with opened_buses(fresh_nats.url, wait_for_connection=True, ready=False) as buses:
        publishing = [asyncio.create_task(buses.durable.publish(ended(number))) for number in range(3)]
        await buses._connection.first_attempt(SECONDS)
        assert not any(task.done() for task in publishing)
        fresh_nats.start()
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*publishing)
    assert await stored(fresh_nats) == 3


async def test_a_subscription_made_while_nats_is_down_starts_when_it_is_up(fresh_nats):
    inbox = RecordingHandler()
    fresh_nats.stop()
    async with opened_buses(fresh_nats.url, ready=False) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        assert not buses.durable.state.ready
        fresh_nats.start()
        await ready(buses)
        await buses.durable.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


async def test_a_lost_pull_request_is_repeated(fresh_nats, monkeypatch):
    monkeypatch.setattr(consumer_module, "PULL_SECONDS", 0.1)
    monkeypatch.setattr(consumer_module, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(consumer_module, "FIRST_PAUSE_SECONDS", 0.01)
    inbox, lost, publish = RecordingHandler(), [], client_module.Client.publish

    async def lose_the_first(client, subject, *args, **how) -> None:
        if ".MSG.NEXT." in subject and not lost:
            lost.append(subject)
            return
        await publish(client, subject, *args, **how)

    monkeypatch.setattr(client_module.Client, "publish", lose_the_first)
    async with opened_buses(fresh_nats.url) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]
    assert lost


async def test_hundreds_of_events_are_handled_in_order_by_an_unreliable_handler(fresh_nats):
    chance, count, done = random.Random(7), 300, []
    complete = asyncio.Event()

    async def handle(event) -> None:
        if chance.random() < 0.05:
            raise ValueError(event.id)
        done.append(event.id)
        if len(done) == count:
            complete.set()

    async with opened_buses(fresh_nats.url) as buses:
        await buses.durable.consume("akosha.session.>", handle, durable="d")
        for number in range(count):
            await buses.durable.publish(ended(number))
        async with asyncio.timeout(60):
            await complete.wait()
        assert done == [f"e-{number}" for number in range(count)]
        await acked(fresh_nats, count, "d")
        found = await consumer(fresh_nats, "d")
        assert (found.num_ack_pending, found.num_pending) == (0, 0)


async def test_requests_are_answered_before_and_after_a_restart(fresh_nats):
    async def answer(request: bytes) -> bytes:
        return request.upper()

    async with opened_buses(fresh_nats.url) as buses:
        await buses.volatile.respond("akosha.agent.mac.status", answer)
        for request in (b"before", b"after"):
            async with connected(fresh_nats.url) as other:
                replies = [other.request("akosha.agent.mac.status", request, timeout=SECONDS) for _ in range(5)]
                assert [reply.data for reply in await asyncio.gather(*replies)] == [request.upper()] * 5
            await restarted(buses, fresh_nats, end="kill")


async def test_replies_arrive_below_the_inbox_prefix_of_the_system(fresh_nats):
    async with opened_buses(fresh_nats.url, inbox_prefix="_INBOX.mac") as buses:
        await buses.durable.publish(ended(1))
        found = await asyncio.to_thread(fresh_nats.monitor, "/subsz?subs=1&limit=1000")
        inboxes = [one["subject"] for one in found["subscriptions_list"] if one["subject"].startswith("_INBOX")]
        assert inboxes
        assert all(subject.startswith("_INBOX.mac.") for subject in inboxes)


async def test_closing_while_the_server_hangs_leaves_no_task_and_no_socket(fresh_nats, monkeypatch):
    monkeypatch.setattr(client_module, "CLOSE_SECONDS", 0.2)
    tasks, held, hang = asyncio.all_tasks(), sockets(), Hang()
    async with opened_buses(fresh_nats.url, patience={"connect": 0.3}) as buses:
        await buses.durable.consume("akosha.session.>", hang, durable="d")
        await buses.volatile.subscribe("akosha.>", RecordingHandler())
        await buses.volatile.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        await buses.durable.publish(ended(1))
        await hang.wait_started()
        fresh_nats.pause()
        async with asyncio.timeout(SECONDS):
            await buses.aclose()
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert sockets() <= held
    with pytest.raises(StateError, match="closed"):
        await buses.durable.publish(ended(2))


async def test_closing_while_nats_is_down_leaves_no_task_and_no_socket(fresh_nats):
    fresh_nats.stop()
    tasks, held = asyncio.all_tasks(), sockets()
    async with opened_buses(fresh_nats.url, ready=False) as buses:
        await buses.durable.consume("akosha.>", RecordingHandler(), durable="d")
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert sockets() <= held


async def test_closing_at_any_moment_finishes_and_leaves_no_task(fresh_nats):
    tasks, rounds, numbers = asyncio.all_tasks(), 20, itertools.count()

    async def life(turns: float) -> int:
        """Start a bus and subscriptions; close it after this many turns of the event loop, or at the first delivery."""
        inbox, turn = RecordingHandler(), 0
        buses = NatsBuses(options(fresh_nats.url), CODEC, clock=CLOCK, wait_for_connection=True)
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.volatile.subscribe("akosha.>", RecordingHandler())
        await buses.volatile.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        publishing = [asyncio.create_task(buses.durable.publish(ended(next(numbers)))) for _ in range(5)]
        while turn < turns and not inbox.ids:
            await asyncio.sleep(0)
            turn += 1
        async with asyncio.timeout(SECONDS):
            await buses.aclose()
            await asyncio.gather(*publishing, return_exceptions=True)
        await until(lambda: asyncio.all_tasks() <= tasks)
        return turn

    async with asyncio.timeout(4 * SECONDS):
        full = await life(math.inf)
        for number in range(rounds):
            await life(full * number / rounds)
