"""A ledger that is being created does not exist for readers, which wait or report that there is none."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from agent.adapters.sqlite_ledger import SqliteLedger, is_created
from agent.adapters.state_directory import StateDirectory
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec


def empty(path):
    path.touch()


def in_wal_mode_without_tables(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def missing(path):
    assert not path.exists()


@pytest.mark.parametrize("state", [missing, empty, in_wal_mode_without_tables])
def test_a_ledger_without_tables_is_not_created_yet(tmp_path, state):
    state(tmp_path / "ledger")
    assert not is_created(tmp_path / "ledger")


async def test_a_ledger_is_created_once_it_is_opened_for_writing(tmp_path):
    path = tmp_path / "ledger"
    ledger = await SqliteLedger.open(path, CloudEventsCodec(), clock=SystemClock())
    try:
        assert is_created(path)
    finally:
        await ledger.aclose()
    assert is_created(path)


def test_a_damaged_ledger_counts_as_created(tmp_path):
    (tmp_path / "ledger").write_bytes(b"no ledger " * 1000)
    assert is_created(tmp_path / "ledger")


def test_commands_ignore_a_ledger_that_is_being_created(tmp_path):
    state = StateDirectory(tmp_path / "state")
    state.prepare(tmp_path / "data")
    empty(state.ledger_file)
    command = [sys.executable, "-P", "-m", "agent"]
    options = ["--state-dir", str(tmp_path / "state"), "--data-dir", str(tmp_path / "data")]
    environment = {**os.environ, "HOME": str(tmp_path)}
    events, status = (
        subprocess.run([*command, *words, *options], env=environment, check=True, capture_output=True, text=True)
        for words in (["events"], ["status", "--json"])
    )
    assert "there are no events yet" in events.stderr
    assert json.loads(status.stdout)["pending"] == []
