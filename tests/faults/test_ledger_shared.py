"""A ledger shared by processes: reads during writes, waits and timeouts of locks, and cancelled callers."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger, file
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import StateError
from tests.support import zygote
from tests.support.clock import ManualClock
from tests.support.servers.ledger_process import deliver, opened
from tests.support.values import NOON, TARGET, skipped

ROOT = Path(__file__).parents[2]
OTHER_UID = 65_534


async def reader(path: Path) -> SqliteLedger:
    return await SqliteLedger.open(path, CloudEventsCodec(), clock=ManualClock(NOON), read_only=True)


async def test_a_reader_sees_only_complete_transactions_of_a_writer(tmp_path):
    path, count = tmp_path / "ledger.db", 150
    await (await opened(path)).aclose()
    command = [sys.executable, "-m", "tests.support.servers.ledger_process", "busy", str(path), str(count)]
    with zygote.popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        watching = await reader(path)
        try:
            seen, position = set(), 0
            async with asyncio.timeout(60):
                while len(await watching.outbox()) < count:
                    record = await watching.record(TARGET)
                    uploads = {part.key.split("/")[3] for entry in record.databases.values() for part in entry.parts}
                    assert len(uploads) <= 1, "both databases are always of the same delivery"
                    assert uploads == ({record.newest_upload_id} - {None})
                    at = await watching.last_position()
                    assert at >= position
                    position = at
                    seen |= uploads
            assert len(seen) > 3
            assert await asyncio.to_thread(child.stdout.readline) == b"ready\n"
            assert len(await watching.history()) == count
        finally:
            child.stdin.close()
            assert await asyncio.to_thread(child.wait, 30) == 0
            await watching.aclose()
    again = await reader(path)
    assert len(await again.history()) == count, "also after the writer has exited"
    await again.aclose()


async def test_a_reader_writes_nothing(tmp_path):
    ledger = await opened(tmp_path / "ledger.db")
    watching = await reader(tmp_path / "ledger.db")
    with pytest.raises(StateError, match="for reading only"):
        await watching.mark_owed(TARGET, ["reflection"])
    await deliver(ledger, 1)
    assert (await watching.record(TARGET)).newest_upload_id == (await ledger.record(TARGET)).newest_upload_id
    await ledger.aclose()
    await watching.aclose()


async def test_a_reader_works_before_and_after_the_writer(tmp_path):
    path = tmp_path / "ledger.db"
    with pytest.raises(StateError, match="no ledger yet"):
        await reader(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(StateError, match="no ledger yet"):
        await reader(path)
    ledger = await opened(path)
    watching = await reader(path)
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.aclose()
    assert set((await watching.record(TARGET)).databases) == {"reflection"}
    await watching.aclose()


@pytest.fixture
def sealed():
    """A directory, and a context in which this process can read it but not write to it."""

    @contextmanager
    def seal():
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(OTHER_UID)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)

    # Not under tmp_path, which other users cannot enter.
    with tempfile.TemporaryDirectory(prefix="ledger-") as name:
        folder = Path(name)
        yield folder, seal


async def test_a_reader_without_write_permission_reads_a_closed_ledger(sealed):
    folder, seal = sealed
    ledger = await opened(folder / "ledger.db")
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.aclose()
    (folder / "ledger.db").chmod(0o644)
    with seal():
        watching = await reader(folder / "ledger.db")
        assert set((await watching.record(TARGET)).databases) == {"reflection"}
        await watching.aclose()


async def test_a_reader_without_write_permission_does_not_ignore_the_wal(sealed, tmp_path):
    folder, seal = sealed
    ledger = await opened(tmp_path / "ledger.db")
    await ledger.mark_owed(TARGET, ["reflection"])
    for name in ("ledger.db", "ledger.db-wal"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    await ledger.aclose()
    with seal(), pytest.raises(StateError, match="cannot be opened"):
        await reader(folder / "ledger.db")


def lock_held(path: Path) -> sqlite3.Connection:
    """Open a transaction that holds the lock, like another process."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def reached(ledger: SqliteLedger, statement: str) -> threading.Event:
    """Return an event that is set when the ledger's thread executes the statement."""
    executed = threading.Event()

    def trace(text: str) -> None:
        if text.startswith(statement):
            executed.set()

    ledger._thread.submit(ledger._connection.set_trace_callback, trace).result()
    return executed


async def test_a_write_waits_for_another_processes_transaction(tmp_path):
    ledger = await opened(tmp_path / "ledger.db")
    other, executed = lock_held(tmp_path / "ledger.db"), reached(ledger, "BEGIN IMMEDIATE")
    write = asyncio.create_task(ledger.mark_owed(TARGET, ["reflection"]), name="write")
    assert await asyncio.to_thread(executed.wait, 30)
    other.execute("ROLLBACK")
    other.close()
    await write
    assert set((await ledger.record(TARGET)).databases) == {"reflection"}
    await ledger.aclose()


async def test_a_write_that_waits_too_long_is_a_transient_error(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.02)
    ledger = await opened(tmp_path / "ledger.db")
    other = lock_held(tmp_path / "ledger.db")
    with pytest.raises(StateError, match="locked by another process") as raised:
        await ledger.mark_owed(TARGET, ["reflection"])
    assert raised.value.transient
    other.execute("ROLLBACK")
    other.close()
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.aclose()


async def test_a_cancelled_write_is_completed(tmp_path):
    ledger = await opened(tmp_path / "ledger.db")
    other, executed = lock_held(tmp_path / "ledger.db"), reached(ledger, "BEGIN IMMEDIATE")
    write = asyncio.create_task(ledger.mark_owed(TARGET, ["reflection"]), name="write")
    assert await asyncio.to_thread(executed.wait, 30)
    write.cancel()
    await asyncio.sleep(0)
    assert not write.done(), "the call returns only after the transaction"
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert set((await ledger.record(TARGET)).databases) == {"reflection"}
    await ledger.aclose()


async def test_the_failure_of_a_cancelled_write_is_logged(tmp_path):
    ledger = await opened(tmp_path / "ledger.db")
    other, executed = lock_held(tmp_path / "ledger.db"), reached(ledger, "BEGIN IMMEDIATE")
    write = asyncio.create_task(ledger.confirm(skipped()), name="write")
    assert await asyncio.to_thread(executed.wait, 30)
    with capture_logs() as logs:
        write.cancel()
        await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        other.execute("ROLLBACK")
        other.close()
        await ledger.mark_owed(TARGET, ["reflection"])
    assert [log["event"] for log in logs] == ["ledger_write_failed"]
    await ledger.aclose()


async def test_a_cancelled_open_leaves_nothing_open(tmp_path):
    path = tmp_path / "ledger.db"
    await (await opened(path)).aclose()
    others = set(threading.enumerate())
    other = lock_held(path)
    opening = asyncio.create_task(opened(path), name="opening")
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.sleep(0)
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for thread in {*threading.enumerate()} - others:
        if thread.name.startswith("ledger"):
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()
    assert not (tmp_path / "ledger.db-wal").exists(), "the last connection deletes it when it closes"
