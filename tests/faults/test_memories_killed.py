"""Kills (SIGKILL) around memories.json.gz: each upload has the rows that are new since its base, and no row is in two.

This file is also a program that kills itself at a named point:

    python tests/faults/test_memories_killed.py POINT [options of `sync`]
"""

import signal
import sqlite3
import sys
from collections import Counter
from itertools import count

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.entrypoints.cli.app import app
from tests.faults.killed_sync import kill_at
from tests.support import session_buddy
from tests.support.machine import Machine

pytestmark = pytest.mark.long

POINTS = ("memories.json.gz:before", "memories.json.gz:after", "manifest.json:after")
CHANGED_SINCE = "memories.json.gz:after"
"""After a kill at this point, the databases change before the next sync, which abandons the unfinished upload."""


def work(machine: Machine, session: int) -> None:
    """Add the two conversations of a session, and edit one of the previous session."""
    session_buddy.make(
        machine.data / session_buddy.REFLECTION,
        f"UPDATE conversations_v2 SET content = 'edited in {session}' WHERE id = 's{session - 1}-1'",
        "INSERT INTO conversations_v2(id, content, category)"
        f" SELECT 's{session}-' || n, 'said in {session}', 'chat' FROM range(2) r(n)",
    )


def test_after_kills_each_state_of_a_row_is_in_one_upload(tmp_path):
    machine, sessions = Machine(tmp_path), count()
    work(machine, next(sessions))
    machine.sync()
    for point in POINTS:
        work(machine, next(sessions))
        assert machine.call(prefix=(sys.executable, __file__, point)).code == -signal.SIGKILL, point
        if point == CHANGED_SINCE:
            work(machine, next(sessions))
        machine.sync()
    manifests = machine.manifests
    assert len(manifests) == len(POINTS) + 1
    assert manifests[0]["memories"] is None, "there is no base"
    changes = [one["memories"] for one in manifests[1:]]
    assert [one["bases"]["reflection"] for one in changes] == [one["upload_id"] for one in manifests[:-1]]
    uploaded = Counter(
        (entry["metadata"]["original_id"], entry["content"]) for one in manifests[1:] for entry in machine.memories(one)
    )
    uploaded += Counter({("s0-0", "said in 0"): 1, ("s0-1", "said in 0"): 1})  # in the database of the first
    last = next(sessions) - 1
    now = {(f"s{n}-0", f"said in {n}") for n in range(last + 1)} | {(f"s{last}-1", f"said in {last}")}
    now |= {(f"s{n}-1", f"edited in {n + 1}") for n in range(last)}
    assert set(uploaded.values()) == {1}
    assert now <= uploaded.keys()
    check_ledger(machine, uploads=len(manifests))


def check_ledger(machine: Machine, *, uploads: int) -> None:
    """Check that nothing is unfinished and each upload has one result."""
    assert machine.staged == []
    ledger = sqlite3.connect(machine.state / "ledger.sqlite")
    try:
        for found in ("intents", "row_sets WHERE upload_id <> ''"):
            assert ledger.execute(f"SELECT COUNT(*) FROM {found}").fetchone() == (0,), found
        assert ledger.execute("SELECT state FROM databases").fetchall() == [("clean",)]
        results = ledger.execute("SELECT COUNT(*) FROM events WHERE type = 'akosha.sync.succeeded.v1'").fetchone()
        assert results == (uploads,)
    finally:
        ledger.close()


if __name__ == "__main__":
    name, _, when = sys.argv[1].partition(":")
    kill_at(DirectoryStore, "put", f"put:{when}", lambda key, *_: key.endswith(name))
    app(["sync", "--json", *sys.argv[2:]])
