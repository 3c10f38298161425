"""A push is killed (SIGKILL) or stopped: all memories arrive, at most one batch twice, with one result each.

This file is also a program that kills itself at a named point:

    python tests/faults/test_http_killed.py POINT [options of `sync`]
"""

import signal
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.entrypoints.cli.app import app
from tests.faults.killed_sync import kill_at
from tests.support import session_buddy
from tests.support.constants import replace_constants
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha

pytestmark = pytest.mark.long

BATCH = 10
SMALL_BATCHES = {"agent.bootstrap.methods:BATCH_SIZE": BATCH}
POINTS = ("batch:after", "deliver_memories:before", "deliver_memories:after")
STEP = 30
"""Memories that a session adds."""


class Gate:
    """Blocks the server's responses from the nth batch on, `before` or after it is stored, until it is opened."""

    def __init__(self, akosha: Akosha, nth: int, *, before: bool) -> None:
        self._akosha, self._nth, self._before = akosha, nth + len(akosha.calls), before
        self.reached, self.opened = threading.Event(), threading.Event()
        akosha.interfere = self

    def __call__(self, tool, arguments):
        if len(self._akosha.calls) < self._nth:
            return None
        answer = None if self._before else self._akosha._answer(tool, arguments)
        self.reached.set()
        self.opened.wait(60)
        return answer

    def open(self) -> None:
        self._akosha.interfere = None
        self.opened.set()


class Pusher(Machine):
    """A machine without a bucket, its Akosha, and queries of its ledger."""

    def __init__(self, tmp_path: Path, akosha: Akosha) -> None:
        super().__init__(tmp_path, http_endpoint=akosha.url, cloud_endpoint=None)
        self.set(http_missing_embedding="zero")
        self.constants = SMALL_BATCHES
        self.akosha, self.memories = akosha, 0

    def work(self) -> None:
        """Add the memories of one session."""
        session_buddy.make(
            self.data / session_buddy.REFLECTION,
            "INSERT INTO conversations_v2(id, content, category) SELECT 'c' || n, 'the ' || n || 'th thing', 'chat'"
            f" FROM range({self.memories}, {self.memories + STEP}) r(n)",
        )
        self.memories += STEP

    def query(self, statement: str) -> list[tuple]:
        ledger = sqlite3.connect(f"file:{self.state / 'ledger.sqlite'}?mode=ro", uri=True)
        try:
            return ledger.execute(statement).fetchall()
        finally:
            ledger.close()

    @property
    def succeeded(self) -> int:
        """Number of deliveries with a result."""
        return self.query("SELECT COUNT(*) FROM events WHERE type = 'akosha.sync.succeeded.v1'")[0][0]

    def check(self, *states: str) -> None:
        """Check that all memories were delivered, and nothing is owed or unfinished."""
        assert len(self.akosha.rows()) == self.memories
        assert self.query("SELECT state FROM databases")[0][0] in states
        assert self.query("SELECT COUNT(*) FROM intents") == [(0,)]
        assert self.query("SELECT COUNT(*) FROM memories WHERE held IS NULL") == [(self.memories,)]
        assert self.staged == []


@pytest.fixture
def akosha():
    with Akosha() as server:
        yield server


@pytest.fixture
def machine(tmp_path, akosha):
    return Pusher(tmp_path, akosha)


def sync_killed_at(machine: Pusher, point: str) -> None:
    where, _, when = point.partition(":")
    if where != "batch":
        assert machine.call(prefix=(sys.executable, __file__, point)).code == -signal.SIGKILL
        return
    gate = Gate(machine.akosha, 2, before=when == "before")
    try:
        with machine.started("sync", "--json") as running:
            assert gate.reached.wait(60)
            running.process.kill()
    finally:
        gate.open()


def test_a_killed_push_is_completed_and_reported_once(machine):
    for rounds, point in enumerate(POINTS, 1):
        machine.work()
        machine.akosha.calls.clear()
        sync_killed_at(machine, point)
        assert machine.sync()["outcome"] == ("skipped" if point == "deliver_memories:after" else "succeeded"), point
        machine.check("clean")
        assert machine.succeeded == rounds, point
        sent = sum(call.size for call in machine.akosha.calls)
        assert STEP <= sent <= STEP + BATCH + 2, (
            f"{point}: one batch twice, and the memory with which each run probes the server"
        )


@pytest.mark.parametrize("command", ["sync", "run"])
def test_a_stopped_push_ends_in_time_and_is_resumed(machine, akosha, command):
    machine.work()
    gate = Gate(akosha, 2, before=True)
    try:
        with machine.started(command) as running:
            assert gate.reached.wait(60)
            code = running.stop(within=60)
            assert code == (0 if command == "run" else 128 + signal.SIGTERM)
    finally:
        gate.open()
    assert machine.query("SELECT COUNT(*) FROM memories") == [(BATCH,)]
    assert machine.staged == []
    with machine.run() as agent:
        agent.logged("sync_succeeded", method="http")
    machine.check("clean", "delivered")
    assert sum(call.size for call in akosha.calls) <= STEP + BATCH + 1


@pytest.mark.parametrize("before", [True, False], ids=["before it is stored", "before it is answered"])
def test_a_kill_during_the_probe_of_an_empty_akosha_sends_everything_again(machine, akosha, before):
    """The server may have stored the probe's memory: the next probe would find it, and assume that nothing is lost."""
    machine.work()
    machine.sync()
    akosha.forget()
    gate = Gate(akosha, 1, before=before)
    try:
        with machine.started("sync", "--json") as running:
            assert gate.reached.wait(60)
            running.process.kill()
    finally:
        gate.open()
    assert len(akosha.rows()) == (0 if before else 1)
    assert machine.sync()["outcome"] == "succeeded"
    machine.check("clean")


if __name__ == "__main__":
    replace_constants(SMALL_BATCHES)
    kill_at(SqliteLedger, "deliver_memories", sys.argv[1])
    app(["sync", "--json", *sys.argv[2:]])
