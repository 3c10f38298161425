"""What the status says of the databases and of the next sync, from the ledger's record and the files."""

from dataclasses import replace

from agent.application.monitoring.status import NextSync, describe
from agent.domain.delivery_state import DatabaseRecord, State, TargetRecord
from agent.entrypoints.status_text import status_lines
from tests.support import values
from tests.support.screens import LOCATIONS, OWED

SEEN = {name: values.fingerprint(name) for name in ("knowledge_graph", "reflection")}


def status_of(**databases: DatabaseRecord):
    return describe(
        system_id="laptop", agent_id="a", route=("cloud",), memory_counts={}, survey=SEEN, notes={},
        records=[TargetRecord(target=values.TARGET, known=True, databases=databases)], results_waiting=0, running=True,
    )  # fmt: skip


def test_a_database_is_delivered_if_the_target_has_some_state_of_it():
    status = status_of(reflection=DatabaseRecord("reflection", State.OWED, values.fingerprint("reflection", 1)))
    assert {one.name: one.delivered for one in status.targets[0].databases} == {
        "knowledge_graph": False,
        "reflection": True,
    }


def test_what_cannot_be_delivered_as_it_is_is_synced_when_its_files_change():
    refused = {name: DatabaseRecord(name, State.OWED, problem=values.problem(name)) for name in SEEN}
    upcoming = status_of(**refused).next_sync
    assert upcoming == NextSync(at=None, reason="change")
    lines = status_lines(replace(OWED, next_sync=upcoming), locations=LOCATIONS, over_nats=False, now=values.NOON)
    assert any("next sync  when its files change" in line.text for line in lines)
    assert status_of(reflection=refused["reflection"]).next_sync is None
