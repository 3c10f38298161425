"""The fleet on a real nats-server, a bucket and a directory: 200 systems, and one that is hostile."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from nats.js.api import StreamConfig

from agent.adapters.nats import event_reader
from agent.adapters.nats.event_reader import NatsEventReader
from agent.adapters.nats.stream import STREAM
from agent.application.fleet.fleet import LEDGER
from agent.application.fleet.merge import Condition
from agent.bootstrap.fleet import open_fleet
from agent.domain.errors import BusError
from agent.domain.naming import STREAM_SUBJECTS
from agent.entrypoints.cli.fleet import fleet_document
from agent.entrypoints.fleet_text import fleet_lines
from agent.settings import Settings
from tests.support import fleet
from tests.support.nats_bus import CLOCK, CODEC, SECONDS, RecordingHandler, options, send_lines, until
from tests.support.servers.nats import connected, running_nats
from tests.support.servers.s3 import running_rclone

pytest_plugins = ["tests.support.servers.fixtures"]

SYSTEMS = [f"laptop-{number:03}" for number in range(199)] + [fleet.LONG_NAME]
STREAM_CONFIG = StreamConfig(name=STREAM, subjects=list(STREAM_SUBJECTS), allow_direct=True)
MAC = "mac"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_nats(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
async def client(server):
    """A client of the server with an empty stream."""
    async with connected(server.url) as client:
        for stream in await client.jsm().streams_info():
            await client.jsm().delete_stream(stream.config.name)
        await client.jetstream().add_stream(STREAM_CONFIG)
        yield client


@pytest.fixture
async def reader(server, client):
    reader = await NatsEventReader.open(options(server.url), CODEC, clock=CLOCK)
    yield reader
    await reader.aclose()


async def send(client, *events, **headers):
    for event in events:
        await client.jetstream().publish(event.subject, CODEC.encode(event), headers=headers or None)


@pytest.mark.parametrize("kind", ["directory", "rclone"])
async def test_one_hostile_system_of_201_hides_and_delays_no_other(server, client, kind, tmp_path, aws):
    now, folder = datetime.now(UTC), tmp_path / "served" / "bucket"

    async def put(key, data):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    await fleet.fill_bucket(put, SYSTEMS, now)
    await fleet.fill_stream(client.jetstream().publish, SYSTEMS, now)
    with running_rclone(folder.parent) as rclone:
        settings = Settings(
            cloud_endpoint=rclone.endpoint if kind == "rclone" else folder.parent.as_uri(),
            cloud_bucket="bucket",
            agent_nats_url=server.url,
            agent_state_dir=tmp_path / "state",
        )
        async with asyncio.timeout(SECONDS), open_fleet(settings, overdue=timedelta(days=1)) as found:
            await found.read()
            report = found.report()
    assert {one.name: (one.systems, one.error) for one in report.sources} == {"bucket": (201, ""), "nats": (201, "")}
    others = {one.system_id: one for one in report.systems if one.system_id != fleet.HOSTILE}
    assert others.keys() == {*SYSTEMS}
    assert {one.condition for one in others.values()} == {Condition.FINE}
    assert {(one.agent_version, one.failures, one.ingestion.behind_seconds) for one in others.values()} == {
        ("1.2.3", 0, 0)
    }
    (hostile,) = [one for one in report.systems if one.system_id == fleet.HOSTILE]
    assert hostile is report.systems[0]
    assert hostile.condition is Condition.FAILING  # what its newest upload lacks
    assert len(hostile.problems) == 6  # a manifest, owner.json and four messages
    for width in (40, 80, 200, None):
        assert all(line.text.isprintable() for line in fleet_lines(report, width=width))
    assert fleet_document(report)["systems"][0]["system_id"] == fleet.HOSTILE


async def test_the_ledger_is_no_source_without_an_agent_and_nothing_is_written(server, client, tmp_path):
    state = tmp_path / "state"
    settings = Settings(cloud_endpoint="", agent_nats_url=server.url, agent_state_dir=state)
    async with open_fleet(settings, overdue=timedelta(days=1)) as found:
        await found.read()
        assert LEDGER not in {one.name for one in found.report().sources}
    assert not state.exists()


async def test_the_newest_event_of_each_subject_is_read_in_parts(reader, client, monkeypatch):
    monkeypatch.setattr(event_reader, "SUBJECTS_AT_ONCE", 7)
    monkeypatch.setattr(event_reader, "BYTES_AT_ONCE", 3_000)
    now = datetime.now(UTC)
    events = [fleet.failed(f"{MAC}-{n}", now, number) for n in range(20) for number in (1, 2)]
    await send(client, *events)
    subjects = await reader.subjects("akosha.sync.*.failed")
    assert subjects == {event.subject: 2 for event in events}
    found = await reader.newest([*subjects, "akosha.sync.never.failed"])
    assert {subject: one.event for subject, one in found.items()} == {event.subject: event for event in events[1::2]}
    assert all(abs(one.stored_at - now) < timedelta(hours=1) for one in found.values())
    assert await reader.newest([]) == {}


async def test_the_messages_after_a_position_are_counted(reader, client):
    now = datetime.now(UTC)
    failures = [fleet.failed(MAC, now, number) for number in range(5)]
    await send(client, failures[0], fleet.skipped(MAC, now), *failures[1:], fleet.failed("other", now))
    first, count = await reader.first_after(failures[0].subject, 2)
    assert (first.event, first.sequence, count) == (failures[1], 3, 4)
    assert await reader.first_after(failures[0].subject, 6) is None
    assert await reader.first_after("akosha.sync.never.failed", 0) is None


async def test_headers_of_a_message_do_not_change_its_subject_or_end_the_answer(reader, client, server):
    now = datetime.now(UTC)
    events = [fleet.skipped(f"{MAC}-{n}", now) for n in range(3)]
    forged = {
        "Nats-Subject": "akosha.sync.elsewhere.skipped",
        "Status": "204",
        "Nats-Sequence": "1",
        "Nats-Num-Pending": "9",
    }
    await send(client, events[0], **forged)
    await send(client, *events[1:])
    data = CODEC.encode(fleet.skipped("unreadable", now))
    broken = b"NATS/1.0\r\n\xff\xfe no header\r\n\r\n"
    await send_lines(
        server,
        b"HPUB akosha.sync.unreadable.skipped %d %d\r\n%s%s" % (len(broken), len(broken) + len(data), broken, data),
    )
    found = await reader.newest(list(await reader.subjects("akosha.sync.*.skipped")))
    assert {subject: one.event for subject, one in found.items() if "unreadable" not in subject} == {
        event.subject: event for event in events
    }


async def test_a_reader_makes_no_stream_and_no_consumer_and_says_why_it_reads_nothing(reader, client):
    await send(client, fleet.skipped(MAC, datetime.now(UTC)))
    await reader.newest(list(await reader.subjects("akosha.>")))
    assert await client.jsm().consumers_info(STREAM) == []
    await client.jsm().delete_stream(STREAM)
    with pytest.raises(BusError, match="the stream does not exist"):
        await reader.subjects("akosha.>")
    assert await client.jsm().streams_info() == []
    await client.jetstream().add_stream(replace(STREAM_CONFIG, allow_direct=False))
    with pytest.raises(BusError, match="does not allow direct gets"):
        await reader.subjects("akosha.>")


async def test_new_events_arrive_and_a_lost_connection_is_reported(tmp_path):
    with running_nats(tmp_path) as server:
        reader = await NatsEventReader.open(options(server.url), CODEC, clock=CLOCK)
        handler, changes = RecordingHandler(), []
        try:
            await reader.follow(["akosha.sync.*.skipped"], handler, lambda: changes.append(reader.problem))
            server.restart()
            await until(lambda: changes and changes[-1] == "")
            assert changes[0] != ""
            event = fleet.skipped(MAC, datetime.now(UTC))
            async with connected(server.url) as client:
                await client.publish(event.subject, CODEC.encode(event))
            assert await handler.wait_for_count(1) == [event.id]
            server.kill()
            await until(lambda: reader.problem)
            with pytest.raises(BusError):
                await reader.subjects("akosha.>")
        finally:
            await reader.aclose()
