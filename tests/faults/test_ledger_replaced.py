"""A damaged ledger, before a command or while an agent runs: it is replaced and rebuilt from the bucket."""

import sqlite3
from contextlib import closing

import pytest

from tests.support.machine import Machine
from tests.support.session_buddy import create


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    create(machine.data, commits=6, entities=3)
    return machine


def damage(machine):
    """Overwrite the ledger with text."""
    (machine.state / "ledger.sqlite").write_bytes(b"this is not a database\n" * 500)


def codes(status):
    return [warning["code"] for warning in status["warnings"]]


def test_a_sync_rebuilds_a_damaged_ledger_from_the_bucket(machine):
    machine.sync()
    damage(machine)
    for command in (("status",), ("events",)):
        refused = machine.call(*command)
        assert refused.code == 1
        assert "is damaged" in refused.err
        assert "sync moves it aside" in refused.err
    result = machine.sync()
    assert result["upload_id"] is None, "the upload in the bucket is adopted"
    assert len(machine.manifests) == 1
    status = machine.status()
    assert (status["pending"], codes(status)) == ([], ["ledger_replaced"])
    for aside in machine.state.glob("ledger.sqlite.damaged-*"):
        aside.unlink()
    machine.write(commits=9)
    assert machine.sync()["upload_id"]
    assert codes(machine.status()) == []


def test_an_agent_starts_with_a_damaged_ledger(machine):
    machine.sync()
    damage(machine)
    with machine.run() as agent:
        agent.logged("ledger_set_aside")
        agent.logged("upload_adopted")
    assert len(machine.manifests) == 1


def test_a_running_agent_replaces_a_damaged_ledger(machine):
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        with closing(sqlite3.connect(machine.state / "ledger.sqlite", isolation_level=None)) as other:
            other.execute("UPDATE targets SET last_success = 'yesterday'")
        machine.write(commits=9)
        agent.logged("ledger_set_aside")
        agent.logged("agent_started", 2)
        agent.logged("sync_succeeded", 2)
    assert len(machine.manifests) == 2
    assert codes(machine.status()) == ["ledger_replaced"]


def test_a_running_agent_replaces_a_ledger_that_was_deleted_each_time(machine):
    machine.constants["agent.entrypoints.cli.run:REPLACED_SECONDS"] = 0.0
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        for number, commits in ((1, 9), (2, 12)):
            for path in machine.state.glob("ledger.sqlite*"):
                path.unlink()
            machine.write(commits=commits)
            agent.logged("ledger_set_aside", number)
            agent.logged("agent_started", number + 1)
            agent.logged("sync_succeeded", number + 1)
    assert len(machine.manifests) == 3
    assert machine.status()["pending"] == []
