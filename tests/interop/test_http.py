"""Session-Buddy's databases, sent by the installed agent with the http method to the real Akosha."""

import re
import signal

import pytest

from agent.domain.memories import EMBEDDING_LENGTH
from tests.bench.http_push import add
from tests.interop.real import running_akosha
from tests.support import machine as machines
from tests.support.machine import Machine
from tests.support.session_buddy import REFLECTION, STATES

NO_EMBEDDING, NO_TOOL = "no embedding", "the server has no tool for a relationship"


def change(machine, statement: str) -> None:
    import duckdb

    with duckdb.connect(str(machine.data / REFLECTION)) as base:
        base.execute(statement)


def http_machine(tmp_path, akosha, system_id: str, *, batch: int, count: int) -> Machine:
    """Return a machine with `count` memories and only the http method."""
    machine = Machine(
        tmp_path / "machine",
        force_method="http",
        http_endpoint=akosha.url,
        system_id=system_id,
        cloud_endpoint=None,
    )
    machine.constants = {"agent.bootstrap.methods:BATCH_SIZE": batch}
    add(machine.data / REFLECTION, 0, count)
    return machine


def account(machine, *words: str) -> dict:
    (found,) = [one for one in machine.call("memories", "--json", *words).json if one["method"] == "http"]
    return found


@pytest.mark.parametrize("state", STATES)
def test_memories_with_embeddings_are_sent_once_and_the_others_wait(machine, akosha, system_id, real_databases, state):
    rows, embedded = STATES[state].rows, STATES[state].embedded
    sent = dict(zip(("conversation", "reflection", "entity"), embedded, strict=True))
    lacking = {"reflection": sum(rows[:2]) - sum(embedded[:2]), "knowledge_graph": rows[2] - embedded[2]}
    without, relationships = {name: count for name, count in lacking.items() if count}, rows[3]
    real_databases(state, machine.data)
    before = {path.name: path.read_bytes() for path in machine.data.iterdir()}
    result = machine.sync("--method", "http")
    assert (result["success"], result["method"], result["memories"]) == (True, "http", sum(sent.values()))
    assert akosha.types(system_id) == sent
    expected = {name: [f"{count} wait: {NO_EMBEDDING}"] for name, count in without.items()}
    expected.setdefault("knowledge_graph", []).append(f"{relationships} wait: {NO_TOOL}")
    assert result["incomplete"] == {name: "; ".join(lines) for name, lines in expected.items()}

    found = account(machine)
    assert found["delivered"] == sum(sent.values())
    assert (found["waiting"], found["refused"]) == (
        {NO_EMBEDDING: sum(without.values()), NO_TOOL: relationships},
        {},
    )
    assert len(found["memories"]) == sum(without.values()) + relationships
    assert {(one["state"], one["kind"] == "relationship", one["reason"]) for one in found["memories"]} == {
        ("waiting", True, NO_TOOL),
        ("waiting", False, NO_EMBEDDING),
    }

    stored = akosha.rows(system_id)
    assert all(row.square == pytest.approx(1, rel=1e-3) for row in stored)
    assert all(re.fullmatch(rf"{system_id}:.+:[0-9a-f]{{8}}", row.memory_id) for row in stored)
    second = machine.sync("--method", "http")
    assert (second["outcome"], second["bytes_transferred"]) == ("skipped", 0)
    assert akosha.rows(system_id) == stored
    assert {path.name: path.read_bytes() for path in machine.data.iterdir()} == before


def test_stored_texts_and_times_equal_those_of_the_database(machine, akosha, system_id, real_databases):
    """Naive times are in the time zone of this machine, not in that of the server."""
    import duckdb

    machine.environ["TZ"] = "America/New_York"
    real_databases("closed", machine.data)
    machine.sync("--method", "http")
    with duckdb.connect(str(machine.data / REFLECTION), read_only=True) as base:
        expected = {
            row_id: (content, time)
            for row_id, content, time in base.execute(
                """SELECT id, content, ("timestamp" AT TIME ZONE 'America/New_York' AT TIME ZONE 'UTC')::VARCHAR
                FROM conversations_v2 WHERE embedding IS NOT NULL"""
            ).fetchall()
        }
    found = {
        row.metadata["original_id"]: (row.text, row.timestamp)
        for row in akosha.rows(system_id)
        if row.metadata["type"] == "conversation"
    }
    assert found == expected


def test_missing_embeddings_are_sent_as_zeros_if_set(machine, akosha, system_id, real_databases):
    real_databases("closed", machine.data)
    machine.sync("--method", "http")
    machine.set(http_missing_embedding="zero")
    result = machine.sync("--method", "http")
    assert (result["outcome"], result["memories"]) == ("succeeded", 17)
    assert akosha.types(system_id) == {"conversation": 200, "reflection": 50, "entity": 40}
    assert sum(row.square == 0 for row in akosha.rows(system_id)) == 17
    assert account(machine)["waiting"] == {NO_TOOL: 66}
    assert machine.sync("--method", "http")["outcome"] == "skipped"


def test_a_memory_is_sent_when_it_gets_an_embedding_and_again_when_it_changes(
    machine, akosha, system_id, real_databases
):
    """An access is not a change: its counters are not sent."""
    real_databases("closed", machine.data)
    machine.sync("--method", "http")
    change(machine, "UPDATE reflections_v2 SET usage_count = usage_count + 1, last_used_at = now()")
    result = machine.sync("--method", "http")
    assert (result["outcome"], len(akosha.rows(system_id))) == ("skipped", 273)
    change(
        machine,
        f"""UPDATE reflections_v2 SET embedding = list_transform(range({EMBEDDING_LENGTH}), lambda i: 0.05)::FLOAT[384]
        WHERE embedding IS NULL""",
    )
    change(
        machine, "UPDATE reflections_v2 SET content = content || '!' WHERE id = (SELECT min(id) FROM reflections_v2)"
    )
    assert machine.sync("--method", "http")["memories"] == 4
    assert akosha.types(system_id) == {"conversation": 187, "reflection": 51, "entity": 39}
    assert account(machine)["waiting"] == {NO_EMBEDDING: 14, NO_TOOL: 66}


def test_a_sync_whose_memories_all_wait_fails_and_stays_owed(machine, akosha, system_id):
    machine.write(commits=5)
    result = machine.sync("--method", "http", code=1)
    assert (result["success"], f"10 wait: {NO_EMBEDDING}" in result["error"]) == (False, True)
    assert "akosha_http_missing_embedding" in result["hint"]
    assert machine.status()["pending"] == ["reflection"]
    assert akosha.rows(system_id) == []


def test_a_refused_memory_is_reported_with_its_reason_and_not_sent_again(machine, akosha, system_id):
    """A text exceeds the limit of 4 MiB per request; the other memories are stored."""
    add(machine.data / REFLECTION, 0, 20)
    change(machine, "UPDATE conversations_v2 SET content = repeat('x', 5_000_000) WHERE rowid = 7")
    result = machine.sync("--method", "http")
    reason = "larger than the server accepts"
    assert (result["success"], result["memories"]) == (True, 19)
    assert result["incomplete"] == {"reflection": f"1 were refused: {reason}"}
    (refused,) = account(machine, "--failed")["memories"]
    assert (refused["state"], refused["kind"], refused["reason"]) == ("refused", "conversation", reason)
    assert machine.sync("--method", "http")["outcome"] == "skipped"
    batches = akosha.batches
    add(machine.data / REFLECTION, 20, 1)
    assert machine.sync("--method", "http")["memories"] == 1
    assert akosha.batches == batches + 2, "one batch to check that no row was lost, one with the new memories"
    change(machine, "UPDATE conversations_v2 SET content = 'short' WHERE length(content) = 5_000_000")
    assert machine.sync("--method", "http")["memories"] == 1
    assert (len(akosha.rows(system_id)), account(machine)["refused"]) == (21, {})


def test_memories_of_two_systems_with_equal_ids_are_both_stored(machine, akosha, system_id, real_databases, tmp_path):
    twin = Machine(
        tmp_path / "twin",
        force_method="http",
        http_endpoint=akosha.url,
        system_id=f"{system_id}-twin",
        cloud_endpoint=None,
    )
    for one in (machine, twin):
        real_databases("mid", one.data)
        assert one.sync("--method", "http")["memories"] == 305
    first, second = akosha.rows(system_id), akosha.rows(f"{system_id}-twin")
    assert sorted(row.text for row in first) == sorted(row.text for row in second)
    assert not {row.memory_id for row in first} & {row.memory_id for row in second}


def test_every_memory_is_stored_once_after_akosha_is_killed_during_a_sync(tmp_path, persistent_akosha, system_id):
    """At most the interrupted batch is sent again. The agent detects by itself that the server is back."""
    batch, count = 100, 1500
    machine = http_machine(tmp_path, persistent_akosha, system_id, batch=batch, count=count)
    with machine.run() as agent:
        persistent_akosha.wait_for_log(r"Batch store completed: 100/100", 4)
        persistent_akosha.kill()
        agent.logged("sync_failed")
        persistent_akosha.start()
        agent.logged("sync_succeeded")
    rows = persistent_akosha.rows(system_id)
    assert len(rows) == len({row.text for row in rows}) == count
    assert persistent_akosha.repeated <= batch + 1
    assert account(machine)["delivered"] == count
    assert machine.sync("--method", "http")["outcome"] == "skipped"


def test_every_memory_is_stored_once_after_the_agent_is_killed_during_a_sync(tmp_path, persistent_akosha, system_id):
    batch, count = 100, 1500
    machine = http_machine(tmp_path, persistent_akosha, system_id, batch=batch, count=count)
    with machine.started("sync", "--json", "--method", "http") as syncing:
        persistent_akosha.wait_for_log(r"Batch store completed: 100/100", 4)
        syncing.process.send_signal(signal.SIGKILL)
        syncing.process.wait()
    result = machine.sync("--method", "http")
    assert result["success"]
    assert len(persistent_akosha.rows(system_id)) == count
    assert persistent_akosha.repeated <= 2 * batch  # the server may have stored a batch whose answer was lost
    assert machine.staged == []


@pytest.mark.long
def test_twenty_thousand_memories_are_stored_and_fifty_more_are_one_batch(machine, akosha, system_id, monkeypatch):
    monkeypatch.setattr(machines, "TIMEOUT", 600)  # Akosha stores some hundreds per second
    add(machine.data / REFLECTION, 0, 20_000)
    result = machine.sync("--method", "http")
    assert (result["success"], result["memories"]) == (True, 20_000)
    assert len(akosha.rows(system_id)) == 20_000
    assert machine.sync("--method", "http")["outcome"] == "skipped"
    add(machine.data / REFLECTION, 20_000, 50)
    batches = akosha.batches
    assert machine.sync("--method", "http")["memories"] == 50
    assert akosha.batches == batches + 2, "one batch to check that no row was lost, one with the new memories"
    assert len(akosha.rows(system_id)) == 20_050


def test_an_akosha_that_lost_its_rows_at_a_restart_gets_all_memories_again(machine, akosha_python, tmp_path):
    """Akosha 0.11.0 does: its rows are in memory."""
    with running_akosha(tmp_path / "akosha") as akosha:
        machine.set(http_endpoint=akosha.url, system_id="forgotten", retry_backoff_seconds=0.2)
        add(machine.data / REFLECTION, 0, 60)
        assert machine.sync("--method", "http")["memories"] == 60
        akosha.restart()
        assert akosha.rows("forgotten") == []
        add(machine.data / REFLECTION, 60, 5)
        assert machine.sync("--method", "http")["success"]
        assert len(akosha.rows("forgotten")) == 65
