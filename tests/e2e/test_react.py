"""From a session end to a row in Akosha: agent, bucket, NATS, `react` and Akosha, each a process or server."""

import asyncio
import json
import random
import shutil
from contextlib import contextmanager

import nats
import pytest

from tests.support.bus_listener import listening
from tests.support.event_documents import check
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha
from tests.support.servers.nats import running_nats
from tests.support.session_buddy import REFLECTION, create

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def akosha():
    with Akosha(token="secret-of-akosha") as akosha:
        yield akosha


@pytest.fixture
def laptop(tmp_path):
    laptop = Machine(tmp_path / "laptop", agent_upload_on_change=False)
    write(laptop, 3)
    return laptop


@pytest.fixture
def react_machine(tmp_path, laptop, akosha):
    """The machine that Akosha runs on, without Session-Buddy."""
    react_machine = Machine(tmp_path / "server", cloud_endpoint=laptop.bucket.as_uri(), http_endpoint=akosha.url)
    react_machine.set(http_token=akosha.token, system_id="akosha-1", agent_rescan_seconds=3600)
    react_machine.secrets = (akosha.token,)
    return react_machine


def write(machine: Machine, commits: int) -> None:
    """Replace the databases by ones with so many commits, all with embeddings."""
    scratch = machine.home / "made"
    create(scratch, commits=commits, entities=2, embeddings=True)
    for path in scratch.iterdir():
        path.replace(machine.data / path.name)


def add_memories(machine: Machine, *texts: str) -> None:
    import duckdb

    with duckdb.connect(str(machine.data / REFLECTION)) as base:
        base.executemany(
            "INSERT INTO conversations_v2(id, content, category, embedding) VALUES (?, ?, 'context', ?)",
            [[f"new-{text[:20]}", text, [0.5] * 384] for text in texts],
        )


@contextmanager
def open_ingest_service(machine: Machine, *words: str):
    with machine.started("react", "--state-dir", str(machine.state), *words, directories=False) as running:
        running.logged("ingest_started")
        yield running
        assert running.stop() == 0, "".join(running.log.raw[-30:])


def once(machine: Machine) -> str:
    done = machine.call("react", "--once", "--state-dir", str(machine.state), directories=False)
    assert done.code == 0, (done.code, done.out, done.err)
    return done.out


def end_session(url: str) -> None:
    event = {
        "specversion": "1.0", "id": "session-1", "source": "urn:akosha-agent:laptop",
        "type": "akosha.session.ended.v1", "time": "2026-11-21T12:00:00Z", "data": {"session_id": "1"},
    }  # fmt: skip

    async def publish() -> None:
        async with await nats.connect(url) as client:
            await client.jetstream().publish("akosha.session.laptop.ended", json.dumps(event).encode())

    asyncio.run(publish())


def test_a_session_end_leads_to_rows_in_akosha_and_an_ingest_event(server, laptop, react_machine, akosha):
    for machine in (laptop, react_machine):
        machine.set(agent_nats_url=server.url)
    with (
        listening(server.url, pattern="akosha.ingest.*.*") as listener,
        open_ingest_service(react_machine),
        laptop.run() as agent,
    ):
        listener.wait(lambda: len(listener.received) == 1)
        before = len(akosha.rows("laptop"))
        add_memories(laptop, "one more")
        end_session(server.url)
        agent.logged("sync_succeeded", 2)
        listener.wait(lambda: len(listener.received) == 2)
    for raw in listener.raw:
        check(raw)
    first, second = (event["data"] for event in listener.received)
    assert (first["source"], first["stored"], first["known"]) == ("databases", before, 0)
    assert (second["source"], second["stored"], len(akosha.rows("laptop"))) == ("memories", 1, before + 1)
    assert [event["data"]["upload_id"] for event in listener.received] == [m["upload_id"] for m in laptop.manifests]
    assert [event["id"] for event in react_machine.events()] == [event["id"] for event in listener.received]


def test_once_reads_memories_from_a_directory_or_from_the_databases(laptop, react_machine, akosha, tmp_path):
    laptop.sync()
    add_memories(laptop, "one more")
    laptop.sync()
    assert "memories stored: " in once(react_machine)
    assert laptop.manifests[1]["memories"]["count"] == 1
    by_deltas, calls = akosha.ids(), len(akosha.calls)
    assert (once(react_machine), len(akosha.calls)) == ("laptop: nothing new\n", calls)
    words = ("react", "--once", "--system", "nosuch", "--state-dir", str(react_machine.state))
    absent = react_machine.call(*words, directories=False)
    assert (absent.code, absent.out) == (1, "")
    assert absent.err.startswith("nosuch: there is no such system in ")
    assert "systems there: laptop" in absent.err
    akosha.forget()
    (first, second) = sorted((laptop.bucket / "systems/laptop/uploads").iterdir())
    for path in first.iterdir():
        path.unlink()
    damaged = second / "memories.json.gz"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    late = Machine(tmp_path / "late", cloud_endpoint=laptop.bucket.as_uri(), http_endpoint=akosha.url)
    late.set(http_token=akosha.token)
    assert "memories stored" in once(late)
    assert akosha.ids() == by_deltas
    assert all(name.startswith("laptop:") for name in by_deltas)
    assert [event["data"]["source"] for event in late.events()] == ["databases"]


def test_akosha_gets_every_memory_of_small_and_large_changes_and_without_a_base(
    laptop, react_machine, akosha, tmp_path
):
    def bases() -> list[str | None]:
        return [(one["memories"] or {"bases": {}})["bases"].get("reflection") for one in laptop.manifests]

    laptop.sync()
    once(react_machine)
    expected = len(akosha.rows("laptop"))
    for session in ("first", "second", "third"):
        add_memories(laptop, session)
        laptop.sync()
    once(react_machine)
    uploads = [one["upload_id"] for one in laptop.manifests]
    assert bases() == [None, *uploads[:3]]
    assert [one["memories"]["count"] for one in laptop.manifests[1:]] == [1, 1, 1]
    assert len(akosha.rows("laptop")) == expected + 3

    texts = [random.Random(number).randbytes(4_000).hex() for number in range(600)]
    add_memories(laptop, *texts[:300])
    laptop.sync()
    once(react_machine)
    assert len(akosha.rows("laptop")) == expected + 303

    add_memories(laptop, *texts[300:])
    laptop.sync()
    pruned = laptop.manifests[-1]["upload_id"]
    add_memories(laptop, "last")
    laptop.sync()
    assert bases()[-1] == pruned
    shutil.rmtree(laptop.bucket / "systems/laptop/uploads" / pruned)
    once(react_machine)
    assert len(akosha.rows("laptop")) == expected + 604
    assert {row.text for row in akosha.rows("laptop")} >= {*texts, "first", "second", "third", "last"}
    assert react_machine.events()[-1]["data"]["source"] == "databases", "the base of the newest upload is gone"

    ids = akosha.ids()
    akosha.forget()
    late = Machine(tmp_path / "late", cloud_endpoint=laptop.bucket.as_uri(), http_endpoint=akosha.url)
    late.set(http_token=akosha.token)
    once(late)
    assert akosha.ids() == ids


def test_react_needs_a_bucket_and_its_own_state_directory(react_machine):
    with open_ingest_service(react_machine):
        done = react_machine.call("react", "--once", "--state-dir", str(react_machine.state), directories=False)
        assert (done.code, "separate state directories (--state-dir)" in done.err) == (1, True)
    react_machine.set(cloud_endpoint=None)
    done = react_machine.call("react", "--state-dir", str(react_machine.state), directories=False)
    assert (done.code, "akosha_cloud_bucket" in done.err) == (2, True)


def test_a_sync_in_the_state_directory_of_react_fails_without_waiting(tmp_path):
    machine = Machine(tmp_path)
    machine.write(commits=1)
    with machine.started("react", "--state-dir", str(machine.state), directories=False) as process:
        process.logged("ingest_started")
        done = machine.call("sync")
        assert (done.code, done.out) == (1, "")
        assert "need separate state directories" in done.err
        assert process.stop() == 0
