"""The complete chain: session end, upload, result, `react`, rows in the real Akosha. Each part is a process."""

import asyncio
import json
from contextlib import contextmanager

import nats
import pytest

from tests.support.bus_listener import listening
from tests.support.event_documents import check
from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.nats import running_nats
from tests.support.servers.s3 import SECRET_KEY, aws_environment
from tests.support.session_buddy import Writer


@pytest.fixture
def server(tmp_path):
    with running_nats(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def bucket(moto):
    return Bucket(moto)


@pytest.fixture
def laptop(tmp_path, bucket, server, system_id):
    return uploading(tmp_path / "laptop", bucket, server, system_id)


def uploading(folder, bucket, server, system_id):
    machine = Machine(
        folder,
        system_id=system_id,
        cloud_endpoint=bucket.server.endpoint,
        cloud_bucket=bucket.name,
        agent_nats_url=server.url,
        agent_upload_on_change=False,
        enable_fallback=False,
    )
    machine.environ |= aws_environment()
    machine.secrets = (SECRET_KEY,)
    return machine


@pytest.fixture
def ingest_machine(tmp_path, bucket, server):
    """Return a function that creates the machine on which `react` runs; it has no databases of Session-Buddy."""

    def make(akosha, name: str = "akosha-1") -> Machine:
        machine = uploading(tmp_path / name, bucket, server, name)
        machine.set(http_endpoint=akosha.url, agent_rescan_seconds=3600)
        return machine

    return make


@contextmanager
def open_ingest_service(machine, *words: str):
    with machine.started("react", "--state-dir", str(machine.state), *words, directories=False) as running:
        running.logged("ingest_started")
        yield running
        assert running.stop() == 0, "".join(running.log.raw[-30:])


def end_session(server, system_id: str, number: int) -> None:
    """Publish a session end as Session-Buddy does."""
    event = {
        "specversion": "1.0", "id": f"session-{number}", "source": f"urn:akosha-agent:{system_id}",
        "type": "akosha.session.ended.v1", "time": "2026-11-21T12:00:00Z", "data": {"session_id": str(number)},
    }  # fmt: skip

    async def publish() -> None:
        async with await nats.connect(server.url) as client:
            await client.jetstream().publish(f"akosha.session.{system_id}.ended", json.dumps(event).encode())

    asyncio.run(publish())


def test_memories_reach_akosha_after_a_session_end_while_the_writer_has_its_databases_open(
    server, laptop, ingest_machine, akosha, system_id
):
    """In the first session all rows are in the WALs. After the second, only its new memories are ingested."""
    ingester = ingest_machine(akosha)
    with (
        Writer(laptop.data, "--paused", "--embeddings") as writer,
        listening(server.url, pattern="akosha.ingest.*.*") as listener,
        open_ingest_service(ingester),
        laptop.run() as agent,
    ):
        for number, commits in enumerate((20, 35), start=1):
            writer.run(f"commit {commits - writer.commits - 1}")
            writer.run("graph 3")
            end_session(server, system_id, number)
            # If the sync at the start still runs, a session has two uploads. The writer's entities have no embedding,
            # and Akosha has no tool for relationships, so both wait.
            expected = {"conversation": commits, "reflection": commits}
            listener.wait(lambda expected=expected: akosha.types(system_id) == expected)
            agent.logged("sync_succeeded", number)
        assert writer.close() == 0
    for raw in listener.raw:
        check(raw)
    rows = akosha.rows(system_id)
    assert len(rows) == len({row.memory_id for row in rows}) == 70
    assert sum(event["data"]["stored"] for event in listener.received) == 70
    assert {event["data"]["source"] for event in listener.received} == {"memories"}
    assert len([event for event in listener.received if event["data"]["kept_back"]]) >= 2, (
        "at least one event for each session"
    )


def test_uploads_made_while_akosha_is_down_are_ingested_when_it_is_up(
    laptop, ingest_machine, persistent_akosha, system_id, real_databases
):
    """No upload is lost, and no memory is stored twice."""
    ingester = ingest_machine(persistent_akosha)
    persistent_akosha.kill()
    for state in ("first", "closed"):
        for path in laptop.data.iterdir():
            path.unlink()
        real_databases(state, laptop.data)
        assert laptop.sync()["outcome"] == "succeeded"
    with open_ingest_service(ingester) as running:
        running.log.wait(lambda line: line.get("level") in ("warning", "error"))
        persistent_akosha.start()
        running.logged("ingest_completed", 2)
    assert persistent_akosha.types(system_id) == {"conversation": 187 + 13, "reflection": 47 + 3, "entity": 39 + 3}
    result = ingester.call("react", "--once", "--state-dir", str(ingester.state), directories=False)
    assert (result.code, "nothing new" in result.out) == (0, True), (result.out, result.err)


def test_memories_sent_by_both_methods_are_stored_once(laptop, ingest_machine, akosha, system_id, real_databases):
    """A memory has the same ID in a push and in an upload."""
    laptop.set(http_endpoint=akosha.url)
    real_databases("mid", laptop.data)
    assert laptop.sync("--method", "http")["memories"] == 305
    pushed = akosha.rows(system_id)
    assert laptop.sync("--method", "cloud")["outcome"] == "succeeded"
    ingester = ingest_machine(akosha)
    result = ingester.call("react", "--once", "--state-dir", str(ingester.state), directories=False)
    assert result.code == 0, result.err
    assert akosha.rows(system_id) == pushed
    assert "already stored: 305" in result.out
