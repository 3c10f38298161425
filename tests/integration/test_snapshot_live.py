"""Snapshots of databases that another process writes continuously."""

import asyncio
import os
import struct
import threading

import pytest
from structlog.testing import capture_logs

from agent.adapters.duckdb import DuckdbSnapshotTaker, bracketed_copy, source
from agent.adapters.duckdb.bracketed_copy import LEAST_ATTEMPTS
from agent.adapters.duckdb.source import HEADER_BYTES
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError
from tests.support.session_buddy import Checker, Writer, check, create

SNAPSHOTS = 20
MOST_SNAPSHOTS = 50 * SNAPSHOTS
"""Under load, few snapshots coincide with a checkpoint: they go on until one has."""

DURING_CHECKPOINT = ("reflection.duckdb.wal", "reflection.duckdb.wal.checkpoint")
BUSY = ("--slow-checkpoints", "50", "--checkpoint-every", "8", "--graph-every", "20", "--interval", "0.005")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging"


def taker_of(data_dir, staging, *, verify=False, **options):
    return DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock(), verify=verify, **options)


@pytest.mark.long
async def test_many_snapshots_of_a_busy_database_are_consistent_and_current_and_the_writer_never_fails(
    engine, data_dir, staging
):
    """Commits continue during checkpoints, in another sidecar. Each copy has all rows committed before it started."""
    fast, thorough = taker_of(data_dir, staging), taker_of(data_dir, staging, verify=True)
    sidecars: set[tuple[str, ...]] = set()
    with Writer(data_dir, *BUSY, engine=engine) as writer, Checker() as checker:
        await asyncio.to_thread(writer.wait, lambda: writer.commits > 20 and writer.entities > 1)
        for number in range(MOST_SNAPSHOTS):
            if number >= SNAPSHOTS and DURING_CHECKPOINT in sidecars:
                break
            for database in ("reflection", "knowledge_graph")[: 1 + (number % 5 == 0)]:
                before = writer.commits if database == "reflection" else writer.entities
                snapshot = await (thorough if number % 10 == 0 else fast).take(database)
                found = await asyncio.to_thread(checker.check, snapshot.folder / f"{database}.duckdb")
                if found.problems and not snapshot.verified:
                    # The metadata block was written during the copy. A verified snapshot detects that.
                    await fast.discard(snapshot)
                    snapshot = await thorough.take(database)
                    found = await asyncio.to_thread(checker.check, snapshot.folder / f"{database}.duckdb")
                assert found.problems == ()
                assert found.last >= before
                assert snapshot.verified or number % 10
                sidecars.add(tuple(file.name for file in snapshot.files[1:]))
                await fast.discard(snapshot)
        await asyncio.to_thread(writer.wait, lambda: writer.checkpoints > 10)
        assert DURING_CHECKPOINT in sidecars
        assert await asyncio.to_thread(writer.close) == 0
        assert writer.events[-1]["event"] == "closed"


def test_the_checker_detects_a_copy_taken_without_a_bracket(data_dir, tmp_path):
    """The previous test can fail: the checker detects main file and sidecar of different states."""
    naive = tmp_path / "naive"
    naive.mkdir()
    with Writer(data_dir, "--paused") as writer:
        for command in ("commit 10", "checkpoint", "commit 10"):
            writer.run(command)
        (naive / "reflection.duckdb").write_bytes((data_dir / "reflection.duckdb").read_bytes())
        for command in ("checkpoint", "commit 10"):
            writer.run(command)
        (naive / "reflection.duckdb.wal").write_bytes((data_dir / "reflection.duckdb.wal").read_bytes())
    with Checker() as checker:
        assert checker.check(naive / "reflection.duckdb").problems


def after_copying(monkeypatch, name, act, *, times=1):
    """Call `act` after each of the first `times` copies of the file `name`."""
    copy, left = bracketed_copy.FileCopy.run, [times]

    def run(self, hashing):
        copy(self, hashing)
        if self.found.name == name and left[0]:
            left[0] -= 1
            act()

    monkeypatch.setattr(bracketed_copy.FileCopy, "run", run)


@pytest.mark.parametrize("name", ["reflection.duckdb", "reflection.duckdb.wal"])
async def test_a_checkpoint_during_a_copy_is_detected_and_the_copy_repeated(
    name, engine, data_dir, staging, monkeypatch
):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        for command in ("commit 10", "checkpoint", "commit 10"):
            writer.run(command)

        def overtake():
            for command in ("commit 3", "checkpoint", "commit 4"):
                writer.run(command)

        after_copying(monkeypatch, name, overtake)
        with capture_logs() as logs:
            snapshot = await taker_of(data_dir, staging).take("reflection")
    assert [entry["attempts"] for entry in logs if entry["event"] == "snapshot_taken"] == [2]
    found = check(snapshot.folder / "reflection.duckdb")
    assert (found.last, found.problems) == (26, ())
    assert sum(file.size for file in snapshot.files) == sum(f.stat().st_size for f in snapshot.folder.iterdir())


async def test_a_sidecar_created_during_the_copy_of_the_main_file_is_copied(data_dir, staging, monkeypatch):
    create(data_dir, commits=5)
    with Writer(data_dir, "--paused") as writer:
        assert not (data_dir / "reflection.duckdb.wal").exists()
        after_copying(monkeypatch, "reflection.duckdb", lambda: writer.run("commit 1"))
        snapshot = await taker_of(data_dir, staging).take("reflection")
    assert [file.name for file in snapshot.files] == ["reflection.duckdb", "reflection.duckdb.wal"]
    assert check(snapshot.folder / "reflection.duckdb").last == 5


async def test_commits_after_the_copy_of_the_sidecar_do_not_repeat_the_copy(data_dir, staging, monkeypatch):
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 5")
        after_copying(monkeypatch, "reflection.duckdb.wal", lambda: writer.run("commit 2"))
        with capture_logs() as logs:
            snapshot = await taker_of(data_dir, staging).take("reflection")
        assert [entry["attempts"] for entry in logs if entry["event"] == "snapshot_taken"] == [1]
        assert check(snapshot.folder / "reflection.duckdb").last == 4
        assert (await taker_of(data_dir, staging).survey())["reflection"] != snapshot.fingerprint


async def test_a_database_replaced_during_the_copy_is_copied_again(data_dir, staging, tmp_path, monkeypatch):
    create(data_dir, commits=5)
    create(tmp_path / "other", commits=9)
    other = tmp_path / "other" / "reflection.duckdb"
    after_copying(monkeypatch, "reflection.duckdb", lambda: other.replace(data_dir / "reflection.duckdb"))
    snapshot = await taker_of(data_dir, staging).take("reflection")
    assert check(snapshot.folder / "reflection.duckdb").last == 8


async def test_a_database_deleted_during_the_copy_is_a_transient_error(data_dir, staging, monkeypatch):
    """Its disk may be mounted again, with the same files."""
    create(data_dir, commits=5)
    after_copying(monkeypatch, "reflection.duckdb", (data_dir / "reflection.duckdb").unlink)
    with pytest.raises(SnapshotError, match=r"there is no reflection\.duckdb") as caught:
        await taker_of(data_dir, staging).take("reflection")
    assert caught.value.transient


@pytest.mark.parametrize("listing", [2, 3, 4])
async def test_a_sidecar_renamed_during_the_copy_is_not_lost(listing, data_dir, staging, monkeypatch):
    """
    A checkpoint ends in two steps: the header is flipped, then `.wal.checkpoint` is renamed to `.wal`.

    This test does the steps at the worst moments: the flip after the files are listed and before the header is read;
    the rename during a later listing, after one of the two names is read and before the other.
    """
    create(data_dir, commits=3)
    main = data_dir / "reflection.duckdb"
    wal, other = data_dir / "reflection.duckdb.wal", data_dir / "reflection.duckdb.wal.checkpoint"
    wal.write_bytes(b"in the main file by now")
    find_file, open_both, listings, pair = source._find_file, bracketed_copy.FileCopy.__init__, [0], []

    def flip(self, found, folder, *, halt):
        if found.name == main.name and not (other.exists() or wal.read_bytes() == b"committed meanwhile"):
            other.write_bytes(b"committed meanwhile")
            with main.open("r+b") as file:
                file.seek(8192)
                file.write(struct.pack("<7Q", 0, 9, 0, 0, 1, 262_144, 2048))
        open_both(self, found, folder, halt=halt)

    def rename(root, name, path):
        if name == main.name:
            listings[0] += 1
            pair.clear()
        if name in {wal.name, other.name}:
            pair.append(name)
            if len(pair) == 2 and listings[0] == listing:
                other.replace(wal)
        return find_file(root, name, path)

    monkeypatch.setattr(bracketed_copy.FileCopy, "__init__", flip)
    monkeypatch.setattr(source, "_find_file", rename)
    snapshot = await taker_of(data_dir, staging).take("reflection")
    assert snapshot.header_iteration == 9
    assert b"committed meanwhile" in {path.read_bytes() for path in snapshot.folder.iterdir()}


async def test_a_writer_that_changes_the_database_during_every_copy_is_a_transient_error(
    data_dir, staging, monkeypatch
):
    with Writer(data_dir, "--paused") as writer:

        def overtake():
            writer.run("commit 1")
            writer.run("checkpoint")

        after_copying(monkeypatch, "reflection.duckdb", overtake, times=-1)
        with pytest.raises(SnapshotError, match=rf"too busy: each of {LEAST_ATTEMPTS} copies in 0 s") as caught:
            await taker_of(data_dir, staging, bracket_seconds=0).take("reflection")
    assert caught.value.transient
    assert list(staging.iterdir()) == []


async def test_the_copy_waits_for_an_empty_file_to_become_a_database(data_dir, staging, tmp_path, monkeypatch):
    """The file is empty at the first attempt and a database at the second."""
    create(tmp_path / "made", commits=4)
    data_dir.mkdir()
    main = data_dir / "reflection.duckdb"
    main.touch()
    waits = threading.Event.wait

    def wait(self, timeout=None):
        if timeout is not None:  # the pause between two attempts; a starting thread waits without a timeout
            main.write_bytes((tmp_path / "made" / "reflection.duckdb").read_bytes())
        return waits(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    snapshot = await taker_of(data_dir, staging).take("reflection")
    monkeypatch.undo()
    assert check(snapshot.folder / "reflection.duckdb").last == 3


async def test_a_cancelled_copy_stops_and_leaves_no_file(data_dir, staging, monkeypatch):
    data_dir.mkdir()
    create(data_dir, commits=5)
    os.truncate(data_dir / "reflection.duckdb", 2**30)
    taking = asyncio.create_task(taker_of(data_dir, staging).take("reflection"))
    write, loop, writing = bracketed_copy.FileCopy._write, asyncio.get_running_loop(), asyncio.Event()

    def write_and_signal(self, chunk):
        loop.call_soon_threadsafe(writing.set)
        write(self, chunk)

    monkeypatch.setattr(bracketed_copy.FileCopy, "_write", write_and_signal)
    async with asyncio.timeout(60):
        await writing.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert list(staging.iterdir()) == []


async def test_a_torn_metadata_block_is_detected_and_the_copy_repeated(engine, data_dir, staging, monkeypatch):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        for command in ("commit 10", "checkpoint"):
            writer.run(command)

        def tear():
            with next(staging.glob("take-*/reflection.duckdb")).open("r+b") as copy:
                copy.seek(HEADER_BYTES + 4096)
                copy.write(os.urandom(4096))

        after_copying(monkeypatch, "reflection.duckdb", tear)
        with capture_logs() as logs:
            snapshot = await taker_of(data_dir, staging, verify=True).take("reflection")
    assert [entry["event"] for entry in logs].count("snapshot_suspect") == 1
    assert (snapshot.verified, check(snapshot.folder / "reflection.duckdb").last) == (True, 9)
