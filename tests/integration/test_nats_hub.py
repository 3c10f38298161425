"""A server with the configuration of docs/scale.md: no system reads or forges what is another one's."""

import asyncio
import json
import re
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest
from nats.errors import Error, NoRespondersError, TimeoutError as NatsTimeout
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError
from structlog.testing import capture_logs

from agent.adapters.nats import Limits, Login
from agent.adapters.nats.event_reader import NatsEventReader
from agent.adapters.nats.server_facts import examine
from agent.adapters.nats.stream import STREAM
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.fleet.events import KINDS, FleetEvents
from agent.application.sync import bus_recovery
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import BusError
from agent.domain.events import IngestCompleted, SyncSucceeded
from agent.domain.naming import EVENT_MAX_AGE, STREAM_SUBJECTS, results_pattern, session_subject
from agent.events_client import results
from tests.support.nats_bus import CLOCK, CODEC, SECONDS, RecordingHandler, ended, opened_buses, options, until
from tests.support.servers.nats import connected
from tests.support.servers.nats_hub import KEYS, PAGE, configuration, configuration_for, running_hub, running_site
from tests.support.values import NOON, manifest, request, skipped, succeeded

REQUEST, RESULT = request(), succeeded(manifest(1))
INGESTED = IngestCompleted(
    id="i-1", time=NOON, system_id="laptop", upload_id="20250601_120000_laptop", source="memories", stored=1, known=0,
    kept_back={},
)  # fmt: skip

DIRECT_GET = f"$JS.API.DIRECT.GET.{STREAM}"
SECRET = b"what only desktop may read"

OF_DESKTOP = (
    "akosha.session.desktop.ended",
    "akosha.sync.desktop.succeeded",
    "akosha.sync.desktop.requested.cloud",
    "akosha.archive.desktop.pruned",
    "akosha.progress.desktop",
    "akosha.agent.desktop.sync",
)
OF_LAPTOP = {"akosha.session.laptop.ended", "akosha.archive.laptop.pruned", "akosha.sync.laptop.succeeded"}
DESTRUCTIVE = (f"$JS.API.STREAM.DELETE.{STREAM}", f"$JS.API.STREAM.PURGE.{STREAM}")
READING = (
    (f"$JS.API.STREAM.INFO.{STREAM}", {"subjects_filter": ">"}),
    (f"$JS.API.STREAM.MSG.GET.{STREAM}", {"seq": 1}),
    (f"$JS.API.STREAM.MSG.GET.{STREAM}", {"last_by_subj": "akosha.session.desktop.ended"}),
    (f"$JS.API.STREAM.MSG.DELETE.{STREAM}", {"seq": 1}),
    (f"$JS.API.STREAM.UPDATE.{STREAM}", {"name": STREAM, "subjects": ["elsewhere"]}),
    (f"$JS.API.CONSUMER.CREATE.{STREAM}.thief.akosha.sync.desktop.>", {"stream_name": STREAM, "config": {}}),
    (f"$JS.API.CONSUMER.DELETE.{STREAM}.dashboard", None),
    (DIRECT_GET, {"seq": 1}),
    (DIRECT_GET, {"multi_last": ["akosha.session.desktop.ended"]}),
    (f"{DIRECT_GET}.akosha.session.desktop.ended", None),
    (f"{DIRECT_GET}.akosha.sync.desktop.succeeded", None),
    (f"{DIRECT_GET}.akosha.sync.*.succeeded", None),
    (f"{DIRECT_GET}.akosha.sync.laptop.succeeded", {"last_by_subj": "akosha.sync.desktop.succeeded"}),
    (f"{DIRECT_GET}.akosha.sync.laptop.succeeded", {"next_by_subj": "akosha.>", "seq": 1, "batch": 10}),
    (f"{DIRECT_GET}.akosha.session.*.ended", None),
    (f"{DIRECT_GET}.akosha.session.laptop.ended", {"seq": 1}),
    (f"{DIRECT_GET}.akosha.session.laptop.ended", {"last_by_subj": "akosha.session.desktop.ended"}),
    (f"{DIRECT_GET}.akosha.session.laptop.ended", {"multi_last": ["akosha.session.desktop.ended"]}),
    (f"{DIRECT_GET}.akosha.session.laptop.ended", {"next_by_subj": "akosha.>", "seq": 1, "batch": 10}),
)
"""Requests that would read or change what is not laptop's, with the administrator's permissions."""


STREAM_CONFIG = StreamConfig(name=STREAM, subjects=list(STREAM_SUBJECTS), allow_direct=True, max_consumers=100)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def key_of(user):
    return {"nkeys_seed_str": KEYS[user].seed}


@pytest.fixture
async def hub(server):
    """The server with an empty stream."""
    async with connected(server.url, **key_of("ADMIN")) as admin:
        for name in await admin.jsm().streams_info():
            await admin.jsm().delete_stream(name.config.name)
        await admin.jetstream().add_stream(STREAM_CONFIG)
    return server


async def listening(client, subject):
    """Subscribe and return the list of the messages, which grows."""
    received = []

    async def keep(message):
        received.append((message.subject, message.data))

    await client.subscribe(subject, cb=keep)
    await client.flush()
    return received


async def stored(admin):
    """Return the number of stored messages per subject."""
    return (await admin.jetstream().stream_info(STREAM, subjects_filter=">")).state.subjects or {}


async def test_a_system_publishes_and_reads_what_is_its_own(hub):
    async with connected(hub.url, **key_of("LAPTOP")) as laptop, connected(hub.url, **key_of("ADMIN")) as admin:
        seen = await listening(laptop, "akosha.session.laptop.ended")
        for subject in ("akosha.sync.laptop.succeeded", "akosha.archive.laptop.pruned", "akosha.session.laptop.ended"):
            ack = await laptop.jetstream().publish(subject, b"1", headers={"Nats-Msg-Id": subject})
            assert ack.stream == STREAM
        await laptop.publish("akosha.sync.laptop.requested.cloud", b"1")
        newest = await laptop.request(f"{DIRECT_GET}.akosha.session.laptop.ended")
        assert (newest.data, newest.headers["Nats-Sequence"]) == (b"1", "3")
        assert len(await stored(admin)) == 4
        await admin.jetstream().publish("akosha.session.laptop.ended", b"2")
        await until(lambda: [data for _, data in seen] == [b"1", b"2"])


async def test_a_system_cannot_read_what_is_another_ones(hub):
    async with (
        connected(hub.url, no_echo=True, **key_of("LAPTOP")) as laptop,
        connected(hub.url, **key_of("DESKTOP")) as desktop,
    ):
        received = await listening(laptop, ">")
        for subject in OF_DESKTOP[:4]:
            await desktop.jetstream().publish(subject, SECRET)
        for subject in OF_DESKTOP:
            await desktop.publish(subject, SECRET)
        await desktop.request(f"{DIRECT_GET}.akosha.session.desktop.ended", b"")
        await laptop.jetstream().publish("akosha.session.laptop.ended", b"own")
        for subject, body in READING:
            await laptop.publish(subject, json.dumps(body).encode() if body else b"", reply="akosha.sync.laptop.answer")
        async with connected(hub.url, **key_of("ADMIN")) as admin:
            before = await stored(admin)
            assert before["akosha.session.desktop.ended"] >= 1
            await laptop.request(f"{DIRECT_GET}.akosha.session.laptop.ended")
            assert {subject for subject in before if ".laptop." in subject} == {"akosha.session.laptop.ended"}
        answers = partial(filter, lambda one: one[0] == "akosha.sync.laptop.answer")
        await until(lambda: len([*answers(received)]) == len(READING))
        assert not [data for _, data in answers(received) if data and b'"error"' not in data]
        assert not [data for subject, data in received if SECRET in data or ".desktop." in subject]


async def test_a_system_cannot_publish_on_subjects_of_another_one_or_change_the_stream(hub):
    """Neither by publishing nor by naming a reply subject, on which the server would answer with its own rights."""
    async with (
        connected(hub.url, **key_of("ADMIN")) as admin,
        connected(hub.url, **key_of("LAPTOP")) as laptop,
        connected(hub.url, **key_of("DESKTOP")) as desktop,
    ):
        seen_by_desktop, seen_by_hub = await listening(desktop, ">"), await listening(admin, "akosha.>")
        await laptop.jetstream().publish("akosha.session.laptop.ended", b"forged")
        await laptop.jetstream().publish("akosha.archive.laptop.pruned", b"")
        own = f"{DIRECT_GET}.akosha.session.laptop.ended"
        for target in (*OF_DESKTOP, *DESTRUCTIVE):
            await laptop.publish(target, b"forged")
            await laptop.publish(target, b"")
            await laptop.publish("akosha.sync.laptop.succeeded", b"", reply=target)
            await laptop.publish(own, b"", reply=target)
        await laptop.jetstream().publish("akosha.session.laptop.ended", b"")
        for target in (*OF_DESKTOP, *DESTRUCTIVE):
            await laptop.publish(own, b"", reply=target)
        with pytest.raises(Error):
            await laptop.jetstream().publish("akosha.sync.laptop.succeeded", b"", headers={"Nats-Rollup": "all"})
        assert (await laptop.request(own)).data == b""
        await admin.flush()
        await desktop.flush()
        assert set(await stored(admin)) == OF_LAPTOP
        await until(lambda: len(seen_by_hub) > len(OF_DESKTOP))
        assert {subject for subject, _ in seen_by_hub} == OF_LAPTOP
        assert seen_by_desktop == []


async def test_a_request_of_the_hub_reaches_one_system_and_its_answer_only_the_asker(hub):
    async with connected(hub.url, **key_of("ADMIN")) as admin, connected(hub.url, **key_of("LAPTOP")) as laptop:

        async def answer(message):
            await message.respond(b"running")

        await laptop.subscribe("akosha.agent.laptop.status", cb=answer)
        await laptop.flush()
        assert (await admin.request("akosha.agent.laptop.status")).data == b"running"
        with pytest.raises((NoRespondersError, NatsTimeout)):
            await admin.request("akosha.agent.desktop.status", timeout=0.1)


def buses_of(url, user, **how):
    return opened_buses(url, login=Login(nkey_seed=KEYS[user].seed), **how)


async def works_as(buses, system):
    """Check that a system's requests, session ends and results flow, without a warning."""
    request = replace(REQUEST, system_id=system)
    result = replace(RESULT, system_id=system)
    heard, requested = RecordingHandler(), RecordingHandler()
    await buses.volatile.subscribe(session_subject(system), heard)
    await buses.volatile.subscribe(request.subject, requested)
    await buses.volatile.publish(request)
    assert await requested.wait_for_event(request.id)
    await buses.durable.publish(result)
    await buses.durable.publish(ended(1, system))
    assert (await buses.durable.newest(session_subject(system))).event == ended(1, system)
    assert (await buses.durable.newest(result.subject)).event == result
    assert await heard.wait_for_event("e-1")
    await buses.durable.remove_consumer("of-an-earlier-version")
    assert (buses.volatile.state.ready, buses.durable.state.ready) == (True, True)


async def test_an_agents_buses_work_in_its_account_without_a_warning(hub):
    with capture_logs() as logs:
        async with buses_of(hub.url, "LAPTOP", inbox_prefix="_INBOX.laptop") as buses:
            await works_as(buses, "laptop")
    assert not [line for line in logs if line["log_level"] != "debug"]


async def test_a_stream_that_is_replaced_while_an_agent_is_idle_gets_its_results_again(hub, tmp_path, monkeypatch):
    """Events of others are in the new stream, and the connection stays: nothing but the regular reading shows it."""
    monkeypatch.setattr(bus_recovery, "CHECK_SECONDS", 0.2)
    ledger = await SqliteLedger.open(tmp_path / "ledger", CODEC, clock=CLOCK)
    result = replace(skipped("r-1", time=CLOCK.now()), system_id="laptop")
    async with buses_of(hub.url, "LAPTOP", inbox_prefix="_INBOX.laptop") as buses:
        recorder = ResultRecorder(ledger, buses.durable, CLOCK)

        async def nothing() -> None:
            pass

        recovery = BusRecovery(
            bus=buses.volatile, results_bus=buses.durable, ledger=ledger, recorder=recorder, clock=CLOCK,
            max_age=EVENT_MAX_AGE, catch_up=nothing, switched=nothing,
        )  # fmt: skip
        tasks = [asyncio.create_task(run) for run in (recovery.run(), recorder.run())]
        try:
            async with connected(hub.url, **key_of("ADMIN")) as admin, asyncio.timeout(SECONDS):
                await ledger.settle(None, result)
                recorder.flush_soon()
                while await ledger.outbox():
                    await CLOCK.sleep(0.01)
                connection = buses.volatile.state.since
                await admin.jsm().delete_stream(STREAM)
                await admin.jetstream().add_stream(STREAM_CONFIG)
                for number in range(9):
                    await admin.jetstream().publish("akosha.sync.desktop.succeeded", b"%d" % number)
                while (await stored(admin)).get(result.subject) != 1:
                    await CLOCK.sleep(0.01)
                assert buses.volatile.state.since == connection
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ledger.aclose()


async def test_doctor_finds_out_whether_results_reach_the_stream_and_stores_nothing(hub, tmp_path):
    """In an account, the server reports no permissions: a missing import would show with the first result only."""
    laptop = options("", login=Login(nkey_seed=KEYS["LAPTOP"].seed))
    async with connected(hub.url, **key_of("ADMIN")) as admin:
        (facts,) = await examine(replace(laptop, servers=(hub.url,)), "laptop")
        assert (facts.refused, facts.jetstream, facts.has_stream, facts.stream) == (None, None, None, None)
        assert await stored(admin) == {}
    lines = '      {service: {account: HUB, subject: "akosha.sync.laptop.>"}}\n'
    assert lines in configuration()
    with running_hub(tmp_path, config=configuration().replace(lines, "")) as server:
        async with connected(server.url, **key_of("ADMIN")) as admin:
            await admin.jetstream().add_stream(STREAM_CONFIG)
            (facts,) = await examine(replace(laptop, servers=(server.url,)), "laptop")
        assert "no stream stores results" in facts.stream.message
        assert "import akosha.sync.laptop.>" in facts.stream.hint


async def test_consumers_have_exactly_the_permissions_that_they_need(hub):
    async with buses_of(hub.url, "LAPTOP") as buses:
        await buses.durable.publish(replace(RESULT, system_id="laptop"))
    dashboard = options(hub.url, login=Login(nkey_seed=KEYS["DASHBOARD"].seed))
    async with asyncio.timeout(SECONDS), aclosing(results(dashboard, durable="dashboard")) as found:
        assert (await anext(found)).system_id == "laptop"
    async with buses_of(hub.url, "REACT") as react:
        handler = RecordingHandler()
        await react.durable.consume(results_pattern("*", "succeeded"), handler, durable="any-react")
        assert await handler.wait_for_event(RESULT.id)
        await react.durable.publish(INGESTED)
        for event in (ended(1, "laptop"), replace(RESULT, system_id="laptop")):
            with pytest.raises(BusError, match=r"(?i)permissions violation"):
                await react.durable.publish(event)


async def test_the_fleet_names_the_permission_that_a_user_lacks(hub):
    async with buses_of(hub.url, "LAPTOP") as buses:
        await buses.durable.publish(replace(RESULT, system_id="laptop"))
    login = options(hub.url, login=Login(nkey_seed=KEYS["DASHBOARD"].seed), patience={"connect": SECONDS})
    reader = await NatsEventReader.open(login, CODEC, clock=CLOCK)
    try:
        with pytest.raises(BusError, match=rf"(?i)permissions violation .*{re.escape(DIRECT_GET)}"):
            await FleetEvents(reader).read()
        await reader.follow(tuple(KINDS), RecordingHandler(), lambda: None)
        await until(lambda: "permissions violation" in reader.problem.lower())
    finally:
        await reader.aclose()


async def test_the_fleets_user_reads_and_follows_all_systems_and_changes_nothing(hub):
    login = options(hub.url, login=Login(nkey_seed=KEYS["FLEET"].seed))
    reader = await NatsEventReader.open(login, CODEC, clock=CLOCK)
    try:
        for user in ("LAPTOP", "DESKTOP"):
            async with buses_of(hub.url, user) as buses:
                await buses.durable.publish(replace(RESULT, system_id=user.lower()))
        found, _ = await FleetEvents(reader).read()
        assert {name: facts.of(SyncSucceeded).system_id for name, facts in found.items()} == {
            "laptop": "laptop", "desktop": "desktop",
        }  # fmt: skip
        handler = RecordingHandler()
        await reader.follow(tuple(KINDS), handler, lambda: None)
        await until(lambda: reader.problem == "")
        async with buses_of(hub.url, "LAPTOP") as laptop, buses_of(hub.url, "REACT") as react:
            failed = replace(RESULT, system_id="laptop", id="another")
            await laptop.durable.publish(failed)
            await react.durable.publish(INGESTED)
        assert sorted(await handler.wait_for_count(2)) == sorted([failed.id, INGESTED.id])
    finally:
        await reader.aclose()
    async with connected(hub.url, **key_of("FLEET")) as client:
        for subject in ("akosha.sync.laptop.succeeded", f"$JS.API.STREAM.PURGE.{STREAM}", f"{DIRECT_GET}.akosha.x"):
            with pytest.raises((NatsTimeout, NoRespondersError)):
                await client.request(subject, b"", timeout=0.1)
    async with connected(hub.url, **key_of("ADMIN")) as admin:
        assert await admin.jsm().consumers_info(STREAM) == []
        assert sum((await stored(admin)).values()) == 4


async def test_without_a_key_nobody_connects(server):
    with pytest.raises((Error, OSError)):
        async with connected(server.url):
            pass


@pytest.mark.parametrize(
    "imported",
    [
        "akosha.sync.laptop.>",
        "akosha.session.laptop.ended",
        f"{DIRECT_GET}.akosha.session.laptop.ended",
        f"{DIRECT_GET}.akosha.sync.laptop.*",
    ],
)
def test_the_server_refuses_to_start_if_an_account_imports_subjects_of_another_system(tmp_path, imported):
    config = configuration()
    quoted = f'"{imported}"'
    assert quoted in config
    wrong = config.replace(quoted, quoted.replace("laptop", "desktop"), 1)
    with pytest.raises(AssertionError, match="import not authorized"), running_hub(tmp_path, config=wrong):
        pass


async def test_a_system_is_added_by_reloading_twice_while_others_stay_connected(tmp_path):
    with running_hub(tmp_path) as server:
        server.restart()
        async with (
            connected(server.url, **key_of("ADMIN")) as admin,
            connected(server.url, **key_of("LAPTOP")) as laptop,
        ):
            await admin.jetstream().add_stream(STREAM_CONFIG)
            server.config = configuration_for(["third"], "secret")
            server.reload()
            server.reload()
            async with connected(server.url, user="third", password="secret") as third:
                assert (await third.jetstream().publish("akosha.sync.third.succeeded", b"1")).seq == 1
            assert (await laptop.jetstream().publish("akosha.sync.laptop.succeeded", b"1")).seq == 2


async def test_a_leaf_node_carries_events_and_direct_gets_of_its_site(tmp_path):
    with running_site(tmp_path) as (server, site):
        async with connected(server.url, **key_of("ADMIN")) as admin:
            await admin.jetstream().add_stream(STREAM_CONFIG)
            async with connected(site.url, **key_of("BERLIN_AGENTS")) as agent:
                heard = await listening(agent, "akosha.session.berlin-1.ended")
                for subject in ("akosha.sync.berlin-1.succeeded", "akosha.session.berlin-1.ended"):
                    assert (await agent.jetstream().publish(subject, b"1")).stream == STREAM
                await admin.jetstream().publish("akosha.session.berlin-1.ended", b"2")
                assert (await agent.request(f"{DIRECT_GET}.akosha.session.berlin-1.ended")).data == b"2"
                await until(lambda: [data for _, data in heard] == [b"1", b"2"])
                with pytest.raises(NoStreamResponseError):
                    await agent.jetstream().publish("akosha.sync.laptop.succeeded", b"forged")
            async with buses_of(site.url, "BERLIN_AGENTS", ready=False) as buses:
                await works_as(buses, "berlin-1")


def test_the_command_of_the_page_makes_the_stream_that_the_agent_would_make():
    (command,) = re.findall(r"nats .*stream add .*?\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    flags = dict(re.findall(r"--([\w-]+)[= ]'?([\w.,>]+)", command))
    limits = Limits()
    assert flags["subjects"].split(",") == list(STREAM_SUBJECTS)
    assert flags["max-age"] == f"{limits.max_age / 86400:.0f}d"
    assert int(flags["max-bytes"]) == limits.max_bytes
    assert flags["dupe-window"] == f"{limits.duplicate_window / 60:.0f}m"
    assert (flags["retention"], flags["discard"], flags["storage"]) == ("limits", "old", "file")
    assert "--allow-direct" in command
