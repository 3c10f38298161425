"""Killed (SIGKILL) around memories.json: each upload has what is new since its base, and no row is in two of them.

This file is also a program, one that kills itself at a named point:

    python tests/faults/test_memories_killed.py POINT [options of `sync`]
"""

import json
import signal
import sqlite3
import sys
from collections import Counter
from itertools import count

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.entrypoints.cli.app import app
from tests.faults.killed_sync import mine
from tests.support import session_buddy
from tests.support.machine import Machine

pytestmark = pytest.mark.long

POINTS = ("memories.json:before", "memories.json:after", "manifest.json:after")
CHANGED_SINCE = "memories.json:after"
"""Killed there, another session goes by before the next sync: what had begun is abandoned."""


def work(machine: Machine, session: int) -> None:
    """A session goes by: two conversations, and one of the session before is edited."""
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
    assert [one["memories"]["bases"]["reflection"] for one in manifests] == [
        None,
        *(one["upload_id"] for one in manifests[:-1]),
    ]
    reported = Counter(
        (entry["metadata"]["original_id"], entry["content"])
        for one in manifests
        for entry in json.loads(machine.object(one["memories"]["key"]))["conversations"]
    )
    last = next(sessions) - 1
    now = {(f"s{n}-0", f"said in {n}") for n in range(last + 1)} | {(f"s{last}-1", f"said in {last}")}
    now |= {(f"s{n}-1", f"edited in {n + 1}") for n in range(last)}
    assert set(reported.values()) == {1}
    assert now <= reported.keys()
    check_ledger(machine, uploads=len(manifests))


def check_ledger(machine: Machine, *, uploads: int) -> None:
    """Nothing is half done, each upload was told of once."""
    assert machine.staged == []
    ledger = sqlite3.connect(machine.state / "ledger.sqlite")
    try:
        for table in ("intents", "staged_memories", "staged_uploads"):
            assert ledger.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
        assert ledger.execute("SELECT state FROM databases").fetchall() == [("clean",)]
        reported = ledger.execute("SELECT COUNT(*) FROM events WHERE type = 'akosha.sync.succeeded.v1'").fetchone()
        assert reported == (uploads,)
    finally:
        ledger.close()


if __name__ == "__main__":
    name, _, when = sys.argv[1].partition(":")
    mine(DirectoryStore, "put", f"put:{when}", lambda key, *_: key.endswith(name))
    app(["sync", "--json", *sys.argv[2:]])
