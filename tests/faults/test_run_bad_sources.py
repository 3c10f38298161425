"""Databases that a running agent cannot copy: it reports the reason, uploads the others, and recovers."""

import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from tests.support import upload_contents
from tests.support.machine import Machine
from tests.support.session_buddy import GRAPH, REFLECTION

pytestmark = pytest.mark.long

RESTRICTED = (sys.executable, str(Path(__file__).with_name("restricted.py")))

NEEDS_UNPRIVILEGED = pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="root's rights can be given up on Linux only"
)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.write(commits=1, entities=1)
    return machine


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    aside = path.with_suffix(".aside")
    aside.write_bytes(os.urandom(100_000))
    aside.replace(path)


def a_directory(path):
    path.unlink()
    path.mkdir()


def a_link_out(path):
    elsewhere = path.parent.parent / "elsewhere.duckdb"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def closed(path):
    path.chmod(0)


def give_version(path, version):
    """Change the format version and the checksum of the main header, which DuckDB verifies first."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 12, version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", data[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    struct.pack_into("<Q", data, 0, checksum)
    path.write_bytes(data)


def repair(machine, *, entities) -> None:
    path = machine.data / GRAPH
    if path.is_dir():
        path.rmdir()
    machine.write(entities=entities)


def origins(manifest) -> dict[str, str]:
    return {part["name"]: part["origin"] for part in manifest["parts"]}


@pytest.mark.parametrize(
    ("restriction", "spoilers"),
    [
        (
            (),
            {
                garbage: "does not start with a DuckDB header",
                a_link_out: "is a symlink that is broken or leads out of the data directory",
            },
        ),
        pytest.param(("unprivileged",), {closed: "no permission to read"}, marks=NEEDS_UNPRIVILEGED),
    ],
    ids=["spoilt", "closed"],
)
def test_a_database_that_cannot_be_copied_is_carried_over(machine, restriction, spoilers, tmp_path):
    """The upload stays complete: it carries over the last good state, marks it, and the database is owed."""
    count = 1
    prefix = {"prefix": (*RESTRICTED, *restriction)} if restriction else {}
    with machine.run(**prefix) as agent, machine.follow() as events:
        good = events.reported("succeeded", 1)[-1]["upload_id"]
        for failures, (spoil, words) in enumerate(spoilers.items(), start=1):
            spoil(machine.data / GRAPH)
            assert words in events.reported("failed", failures)[-1]["error"]
            status = machine.status()
            (row,) = (row for row in status["targets"][0]["databases"] if row["name"] == "knowledge_graph")
            assert words in row["problem"]
            assert spoil is not closed or "chmod u+r" in row["problem"]
            assert (row["pending"], status["pending"]) == (True, ["knowledge_graph"])

            machine.write(commits=1 + failures)
            (result,) = events.reported("succeeded", count + 1)[count:]
            assert words in result["incomplete"]["knowledge_graph"]
            manifest = machine.manifests[-1]
            assert words in manifest["incomplete"]["knowledge_graph"]
            assert origins(manifest) == {GRAPH: "carried", REFLECTION: "sent"}
            (carried,) = (part for part in manifest["parts"] if part["name"] == GRAPH)
            assert carried["carried_from"] == good
            rows = upload_contents.rows(
                upload_contents.unpack(manifest, machine.object, tmp_path / f"carried-{failures}")
            )
            assert rows["knowledge_graph"]["kg_entities"] == failures
            assert rows["reflection"]["conversations_v2"] == 1 + failures

            repair(machine, entities=1 + failures)
            count += 2
            repaired = events.reported("succeeded", count)[-1]
            assert repaired["incomplete"] == {}
            good = repaired["upload_id"]
            assert origins(machine.manifests[-1]) == {GRAPH: "sent", REFLECTION: "copied"}
        assert machine.status()["pending"] == []
        assert agent.process.poll() is None
    assert len(machine.manifests) == count
    assert machine.staged == []


def test_a_database_of_a_newer_duckdb_is_uploaded_unverified(machine):
    give_version(machine.data / REFLECTION, 999)
    result = machine.sync()
    assert (result["success"], result["incomplete"]) == (True, {})
    parts = {part["name"]: part for part in machine.manifests[-1]["parts"]}
    assert (parts[REFLECTION]["verified"], parts[GRAPH]["verified"]) == (False, True)
    assert "version" in parts[REFLECTION]["unverified_reason"].lower()
    assert machine.status()["pending"] == []


def test_databases_uploaded_without_the_child_program_are_uploaded_completely_after_a_restart(machine):
    """An upgrade has replaced the files of an agent that still runs."""
    machine.constants = {
        "agent.adapters.duckdb.child_process:CHILD": "agent.adapters.duckdb.gone",
        "agent.domain.routing:FIRST_TARGET_BACKOFF": {"seconds": 0.1},
    }
    words = "uploaded, but the verification ended early (exit status 1)"
    with machine.run() as agent, machine.follow() as events:
        (result,) = events.reported("succeeded")
        assert result["incomplete"] == dict.fromkeys(("knowledge_graph", "reflection"), words)
        events.reported("failed", 3)
        (target,) = machine.status()["targets"]
        assert [(row["pending"], words in row["problem"]) for row in target["databases"]] == [(True, True)] * 2
        assert target["next_try"]
        assert len(agent.logged("upload_incomplete", 2)) == 2, "one warning for each database"
    assert len(machine.manifests) == 1
    machine.constants = {}
    with machine.run():
        machine.status(lambda status: not status["pending"] and not status["results_waiting"])
    _, newest = machine.manifests
    assert (newest["incomplete"], newest["without_memories"], newest["memories"]) == ({}, {}, None)
    assert set(newest["memories_omitted"]) == {"knowledge_graph", "reflection"}, "they were read, and have no base"
    assert {(part["verified"], part["origin"]) for part in newest["parts"]} == {(True, "copied")}
    results = [event["data"] for event in machine.events() if event["type"] == "akosha.sync.succeeded.v1"]
    assert [one["upload_id"] for one in results] == [one["upload_id"] for one in machine.manifests]
    assert results[-1]["triggered_by"] == "startup"


def test_an_invalid_database_does_not_block_the_other(machine):
    garbage(machine.data / REFLECTION)
    result = machine.sync()
    assert "does not start" in result["incomplete"]["reflection"]
    assert origins(machine.manifests[-1]) == {GRAPH: "sent"}
    machine.write(commits=2)
    machine.sync()
    assert origins(machine.manifests[-1]) == {GRAPH: "copied", REFLECTION: "sent"}


def test_a_data_directory_that_disappears_is_watched_again_when_it_returns(machine):
    elsewhere = machine.data.with_name("elsewhere")
    machine.data.rename(elsewhere)
    with machine.run() as agent, machine.follow() as events:
        agent.logged("watch_mode", mode=f"waiting for {machine.data}")
        assert machine.status()["pending"] == []
        elsewhere.rename(machine.data)
        assert events.reported("succeeded", 1)[0]["incomplete"] == {}
        shutil.rmtree(machine.data)
        agent.logged("watch_mode", 2, mode=f"waiting for {machine.data}")
        machine.status(until=lambda status: status["notes"]["watcher"] == f"waiting for {machine.data}")
        machine.data.mkdir()
        machine.write(commits=2, entities=2)
        events.reported("succeeded", 2)
        agent.logged("watch_mode", 2, mode="native")
    assert machine.status()["pending"] == []
    assert machine.manifests[-1]["metadata"]["rows"]["reflection"]["conversations_v2"] == 2


@NEEDS_UNPRIVILEGED
def test_an_unreadable_data_directory_is_reported_and_waited_for(machine):
    unprivileged = {"prefix": (*RESTRICTED, "unprivileged")}
    machine.set(agent_rescan_seconds=1)
    machine.data.chmod(0)
    with machine.run(**unprivileged) as agent, machine.follow() as events:
        agent.logged("watch_mode", mode=f"waiting for {machine.data} (Permission denied)")
        document, table = machine.call("status", "--json", **unprivileged), machine.call("status", **unprivileged)
        assert (document.code, table.code) == (0, 0)
        for text in (document.json["problem"], table.out):
            assert "cannot read the data directory" in text
            assert "Permission denied" in text
        failed = machine.sync(code=1, **unprivileged)
        assert "cannot read the data directory" in failed["error"]
        machine.data.chmod(0o700)
        events.reported("succeeded", 1)
    assert (machine.status()["pending"], machine.status()["problem"]) == ([], "")


def test_a_full_disk_during_staging_does_not_block_the_other_database(machine):
    """The kernel refuses to write more, as with a full disk or an exhausted quota."""
    import duckdb

    (machine.data / REFLECTION).unlink()
    with duckdb.connect(str(machine.data / REFLECTION)) as base:
        base.execute("CREATE TABLE numbers AS SELECT random() AS n FROM range(2_000_000)")
    with machine.run(prefix=(*RESTRICTED, f"file-limit:{8 * 2**20}")) as agent, machine.follow() as events:
        result = events.reported("succeeded", 1)[0]
        assert "bytes needed" in result["incomplete"]["reflection"]
        (line,) = agent.logged("snapshot_failed")
        assert (line["database"], line["transient"]) == ("reflection", True)
        assert "akosha_agent_state_dir" in line["error"]
        status = machine.status()
        assert (status["pending"], bool(status["targets"][0]["next_try"])) == (["reflection"], True)
        assert machine.staged == []
        machine.write(commits=3)
        assert events.reported("succeeded", 2)[1]["incomplete"] == {}
    assert machine.status()["pending"] == []
    assert origins(machine.manifests[-1]) == {GRAPH: "copied", REFLECTION: "sent"}
