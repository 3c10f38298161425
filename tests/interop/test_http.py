"""Session-Buddy's own databases, by the http method, into the real Akosha: the whole agent as people run it."""

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


def pushing(tmp_path, akosha, system_id: str, *, batch: int, count: int) -> Machine:
    """A machine with so many memories, whose only way is http."""
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
def test_what_has_an_embedding_arrives_the_rest_waits_and_is_reported_and_a_second_sync_sends_nothing(
    machine, akosha, system_id, real_databases, state
):
    rows, embedded = STATES[state].rows, STATES[state].embedded
    arriving = dict(zip(("conversation", "reflection", "entity"), embedded, strict=True))
    lacking = {"reflection": sum(rows[:2]) - sum(embedded[:2]), "knowledge_graph": rows[2] - embedded[2]}
    without, relationships = {name: count for name, count in lacking.items() if count}, rows[3]
    real_databases(state, machine.data)
    before = {path.name: path.read_bytes() for path in machine.data.iterdir()}
    result = machine.sync("--method", "http")
    assert (result["success"], result["method"], result["memories"]) == (True, "http", sum(arriving.values()))
    assert akosha.types(system_id) == arriving
    reported = {name: [f"{count} wait: {NO_EMBEDDING}"] for name, count in without.items()}
    reported.setdefault("knowledge_graph", []).append(f"{relationships} wait: {NO_TOOL}")
    assert result["incomplete"] == {name: "; ".join(lines) for name, lines in reported.items()}

    found = account(machine)
    assert found["delivered"] == sum(arriving.values())
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
    again = machine.sync("--method", "http")
    assert (again["outcome"], again["bytes_transferred"]) == ("skipped", 0)
    assert akosha.rows(system_id) == stored
    assert {path.name: path.read_bytes() for path in machine.data.iterdir()} == before


def test_texts_and_times_arrive_as_they_stand_in_the_database(machine, akosha, system_id, real_databases):
    """Naive times are of this machine's zone, whatever the server's is."""
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


def test_zeros_go_in_the_place_of_missing_embeddings_where_that_is_set(machine, akosha, system_id, real_databases):
    real_databases("closed", machine.data)
    machine.sync("--method", "http")
    machine.set(http_missing_embedding="zero")
    result = machine.sync("--method", "http")
    assert (result["outcome"], result["memories"]) == ("succeeded", 17)
    assert akosha.types(system_id) == {"conversation": 200, "reflection": 50, "entity": 40}
    assert sum(row.square == 0 for row in akosha.rows(system_id)) == 17
    assert account(machine)["waiting"] == {NO_TOOL: 66}
    assert machine.sync("--method", "http")["outcome"] == "skipped"


def test_a_memory_goes_when_it_gets_its_embedding_and_a_changed_one_goes_again(
    machine, akosha, system_id, real_databases
):
    """Reading a memory is no change: the counters of accesses are not sent."""
    real_databases("closed", machine.data)
    machine.sync("--method", "http")
    change(machine, "UPDATE reflections_v2 SET usage_count = usage_count + 1, last_used_at = now()")
    counted = machine.sync("--method", "http")
    assert (counted["outcome"], len(akosha.rows(system_id))) == ("skipped", 273)
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


def test_where_everything_must_wait_it_is_no_success_and_stays_owed(machine, akosha, system_id):
    machine.write(commits=5)
    result = machine.sync("--method", "http", code=1)
    assert (result["success"], f"10 wait: {NO_EMBEDDING}" in result["error"]) == (False, True)
    assert "akosha_http_missing_embedding" in result["hint"]
    assert machine.status()["pending"] == ["reflection"]
    assert akosha.rows(system_id) == []


def test_what_akosha_refuses_is_reported_with_its_reason_and_not_sent_again(machine, akosha, system_id):
    """A text beyond the 4 MiB that a request may have; the others arrive, the agent does not insist."""
    add(machine.data / REFLECTION, 0, 20)
    change(machine, "UPDATE conversations_v2 SET content = repeat('x', 5_000_000) WHERE rowid = 7")
    result = machine.sync("--method", "http")
    why = "larger than the server accepts"
    assert (result["success"], result["memories"]) == (True, 19)
    assert result["incomplete"] == {"reflection": f"1 were refused: {why}"}
    (refused,) = account(machine, "--failed")["memories"]
    assert (refused["state"], refused["kind"], refused["reason"]) == ("refused", "conversation", why)
    assert machine.sync("--method", "http")["outcome"] == "skipped"
    batches = akosha.batches
    add(machine.data / REFLECTION, 20, 1)
    assert machine.sync("--method", "http")["memories"] == 1
    assert akosha.batches == batches + 2, "the memory that proves that nothing was lost, then the new ones"
    change(machine, "UPDATE conversations_v2 SET content = 'short' WHERE length(content) = 5_000_000")
    assert machine.sync("--method", "http")["memories"] == 1
    assert (len(akosha.rows(system_id)), account(machine)["refused"]) == (21, {})


def test_two_systems_with_equal_ids_both_arrive(machine, akosha, system_id, real_databases, tmp_path):
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
    mine, its = akosha.rows(system_id), akosha.rows(f"{system_id}-twin")
    assert sorted(row.text for row in mine) == sorted(row.text for row in its)
    assert not {row.memory_id for row in mine} & {row.memory_id for row in its}


def test_akosha_is_killed_in_the_middle_and_everything_arrives_once(tmp_path, kept_akosha, system_id):
    """What had arrived is not sent again, but for a batch on its way; nobody has to tell that the server is back."""
    batch, count = 100, 1500
    machine = pushing(tmp_path, kept_akosha, system_id, batch=batch, count=count)
    with machine.run() as agent:
        kept_akosha.said(r"Batch store completed: 100/100", 4)
        kept_akosha.kill()
        agent.logged("sync_failed")
        kept_akosha.start()
        agent.logged("sync_succeeded")
    rows = kept_akosha.rows(system_id)
    assert len(rows) == len({row.text for row in rows}) == count
    assert kept_akosha.repeated <= batch + 1
    assert account(machine)["delivered"] == count
    assert machine.sync("--method", "http")["outcome"] == "skipped"


def test_the_agent_is_killed_in_the_middle_and_everything_arrives_once(tmp_path, kept_akosha, system_id):
    batch, count = 100, 1500
    machine = pushing(tmp_path, kept_akosha, system_id, batch=batch, count=count)
    with machine.started("sync", "--json", "--method", "http") as syncing:
        kept_akosha.said(r"Batch store completed: 100/100", 4)
        syncing.process.send_signal(signal.SIGKILL)
        syncing.process.wait()
    result = machine.sync("--method", "http")
    assert result["success"]
    assert len(kept_akosha.rows(system_id)) == count
    assert kept_akosha.repeated <= 2 * batch  # the server may have had one more of which nobody was told
    assert machine.staged == []


@pytest.mark.long
def test_twenty_thousand_memories_arrive_and_fifty_more_are_one_batch(machine, akosha, system_id, monkeypatch):
    monkeypatch.setattr(machines, "TIMEOUT", 600)  # Akosha takes some hundreds in a second
    add(machine.data / REFLECTION, 0, 20_000)
    result = machine.sync("--method", "http")
    assert (result["success"], result["memories"]) == (True, 20_000)
    assert len(akosha.rows(system_id)) == 20_000
    assert machine.sync("--method", "http")["outcome"] == "skipped"
    add(machine.data / REFLECTION, 20_000, 50)
    batches = akosha.batches
    assert machine.sync("--method", "http")["memories"] == 50
    assert akosha.batches == batches + 2, "the memory that proves that nothing was lost, then the new ones"
    assert len(akosha.rows(system_id)) == 20_050


def test_an_akosha_that_kept_nothing_over_its_restart_is_given_all_of_it_again(machine, akosha_python, tmp_path):
    """As 0.11.0 does by itself: its rows are in memory."""
    with running_akosha(tmp_path / "akosha") as akosha:
        machine.set(http_endpoint=akosha.url, system_id="forgotten", retry_backoff_seconds=0.2)
        add(machine.data / REFLECTION, 0, 60)
        assert machine.sync("--method", "http")["memories"] == 60
        akosha.restart()
        assert akosha.rows("forgotten") == []
        add(machine.data / REFLECTION, 60, 5)
        assert machine.sync("--method", "http")["success"]
        assert len(akosha.rows("forgotten")) == 65
