"""A ledger that its writer is just making is none yet: whoever looks then waits, or says that there is none."""

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
def test_it_is_not_made_before_it_has_its_tables(tmp_path, state):
    state(tmp_path / "ledger")
    assert not is_created(tmp_path / "ledger")


async def test_it_is_made_once_it_has_been_opened_for_writing(tmp_path):
    path = tmp_path / "ledger"
    ledger = await SqliteLedger.open(path, CloudEventsCodec(), clock=SystemClock())
    try:
        assert is_created(path)
    finally:
        await ledger.aclose()
    assert is_created(path)


def test_a_damaged_one_counts_as_made_so_that_opening_it_says_what_is_wrong(tmp_path):
    (tmp_path / "ledger").write_bytes(b"no ledger " * 1000)
    assert is_created(tmp_path / "ledger")


def test_commands_take_one_in_the_making_for_none(tmp_path):
    state = StateDirectory(tmp_path / "state")
    state.prepare(tmp_path / "data")
    empty(state.ledger_file)
    command = [sys.executable, "-P", "-m", "agent"]
    place = ["--state-dir", str(tmp_path / "state"), "--data-dir", str(tmp_path / "data")]
    environment = {**os.environ, "HOME": str(tmp_path)}
    events, status = (
        subprocess.run([*command, *words, *place], env=environment, check=True, capture_output=True, text=True)
        for words in (["events"], ["status", "--json"])
    )
    assert "there are no events yet" in events.stderr
    assert json.loads(status.stdout)["pending"] == []
