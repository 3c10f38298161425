"""Snapshots of databases without a writer: the copied files, the result, and that nothing else changes."""

import asyncio
import hashlib
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys

import duckdb
import pytest
from structlog.testing import capture_logs

from agent.adapters.child_process import Exchange, end
from agent.adapters.duckdb import DuckdbSnapshotTaker, child_process
from agent.adapters.duckdb.child_process import CHILD
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError
from agent.ports import NoMeter
from tests.support.clock import ManualClock
from tests.support.processes import children
from tests.support.session_buddy import REAL, STATES, Writer, check, create

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the databases of Session-Buddy are missing")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "state" / "staging"


@pytest.fixture
def taker(data_dir, staging):
    return DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock())


def copy_state(state, data_dir):
    shutil.copytree(REAL / state, data_dir)
    for path in data_dir.iterdir():
        path.chmod(0o644)


def file_status(directory):
    """Return inode, size, modification time and mode of each file."""
    return {
        path.name: (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        for path in directory.iterdir()
        for status in [path.lstat()]
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def give_version(path, version):
    """Patch the format version and the checksum of the main header, which DuckDB checks first."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 12, version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", data[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    struct.pack_into("<Q", data, 0, checksum)
    path.write_bytes(data)


@needs_real_data
@pytest.mark.parametrize("state", STATES)
async def test_databases_of_session_buddy_are_copied_completely_in_every_state(state, data_dir, taker):
    conversations, reflections, entities, relationships = STATES[state].rows
    copy_state(state, data_dir)
    before = file_status(data_dir)
    survey = await taker.survey()
    assert set(survey) == {"reflection", "knowledge_graph"}
    rows = {}
    for database in survey:
        snapshot = await taker.take(database)
        assert (snapshot.verified, snapshot.unverified_reason) == (True, "")
        rows |= snapshot.rows
        # Verifying a WAL does not change the copy and leaves no other file.
        assert {file.name: (file.size, file.sha256) for file in snapshot.files} == {
            path.name: (path.stat().st_size, sha256(path)) for path in snapshot.folder.iterdir()
        }
        assert all(sha256(data_dir / file.name) == file.sha256 for file in snapshot.files)
        assert snapshot.fingerprint == survey[database]
        checkpoints = {"first": 0, "hnsw": 3 if database == "reflection" else 1}
        assert snapshot.header_iteration == checkpoints.get(state, 1)
        assert snapshot.storage_version == STATES[state].storage_version
    assert {table: count for table, count in rows.items() if count} == {
        "conversations_v2": conversations,
        "reflections_v2": reflections,
        "kg_entities": entities,
        "kg_relationships": relationships,
    }
    assert file_status(data_dir) == before
    assert await taker.survey() == survey


async def test_a_copy_is_unverified_if_its_verification_hangs_and_the_child_is_killed(data_dir, staging, monkeypatch):
    create(data_dir, commits=3)
    started = []
    start = child_process.start

    async def stopped(copy):
        started.append(await start(copy))
        started[0].send_signal(signal.SIGSTOP)
        return started[0]

    monkeypatch.setattr(child_process, "start", stopped)
    taker = DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock(), verify_stall_seconds=0.5)
    snapshot = await taker.take("reflection")
    assert (snapshot.verified, snapshot.is_readable) == (False, False)
    assert snapshot.unverified_reason == "the verification made no progress for 0.5 s"
    assert started[0].returncode == -signal.SIGKILL
    assert [file.name for file in snapshot.files] == ["reflection.duckdb"], "the copy can still be uploaded"


async def test_a_slow_verification_with_progress_is_awaited(data_dir, staging):
    """The child reports progress. The stall timeout starts again with each report, not with the request."""
    program = (
        "import sys, time; from agent.adapters.child_output import BEAT, framed\n"
        "sys.stdin.readline()\n"
        "for _ in range(8): sys.stdout.buffer.write(BEAT); sys.stdout.buffer.flush(); time.sleep(0.2)\n"
        "sys.stdout.buffer.write(framed(b'{\"verdict\": 1}')); sys.stdout.buffer.flush()"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert await Exchange(child, 60, stall_seconds=1.2).ask(b"verify", "verdict", int) == 1
    await end(child)


async def test_copies_are_private_and_are_removed(data_dir, staging, taker):
    create(data_dir, commits=3)
    kept = await taker.take("reflection")
    assert stat.S_IMODE(staging.stat().st_mode) == stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept.folder.iterdir()} == {0o600}
    left = await taker.take("knowledge_graph")
    await taker.discard(kept)
    await taker.discard(kept)
    assert list(staging.iterdir()) == [left.folder]
    (staging / "a stray file").touch()
    await taker.sweep()
    assert list(staging.iterdir()) == []


async def test_a_missing_data_directory_fails_the_survey_and_not_the_sweep(taker):
    with pytest.raises(SnapshotError, match=r"does not exist \(start Session-Buddy once"):
        await taker.survey()
    await taker.sweep()


async def test_the_survey_has_databases_and_invalid_files_with_their_names_only(data_dir, taker):
    create(data_dir, commits=1)
    (data_dir / "akosha_sync_state.json").write_text("{}")
    (data_dir / "knowledge_graph_gone.duckdb.wal").write_bytes(b"a sidecar without a main file")
    (data_dir / "knowledge_graph_dir.duckdb").mkdir()
    os.mkfifo(data_dir / "knowledge_graph_fifo.duckdb")
    (data_dir / "knowledge_graph_link.duckdb").symlink_to("/nowhere")
    survey = await taker.survey()
    assert {database for database, seen in survey.items() if seen.header} == {"reflection", "knowledge_graph"}
    assert {database for database, seen in survey.items() if not seen.header} == {
        "knowledge_graph_dir", "knowledge_graph_fifo", "knowledge_graph_link",
    }  # fmt: skip


async def test_a_commit_to_the_wal_changes_the_survey(engine, data_dir, taker):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        writer.run("commit 2")
        before = (await taker.survey())["reflection"]
        writer.run("commit 1")
        after = (await taker.survey())["reflection"]
    assert before != after
    assert (before.files[0], before.header) == (after.files[0], after.header)


async def test_a_snapshot_leaves_the_lock_of_the_writer_in_place(data_dir, taker):
    attempt = f"import duckdb; duckdb.connect({str(data_dir / 'reflection.duckdb')!r}, read_only=True)"
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        await taker.discard(await taker.take("reflection"))
        other = subprocess.run([sys.executable, "-c", attempt], check=False, capture_output=True, text=True)
        assert "lock" in other.stderr
        writer.run("commit 1")
        assert writer.close() == 0


async def test_a_database_with_all_rows_in_its_wal_is_copied_after_a_crash(engine, data_dir, taker):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        writer.run("commit 20")
        writer.crash()
    assert (data_dir / "reflection.duckdb").stat().st_size == 12_288
    snapshot = await taker.take("reflection")
    assert snapshot.rows["conversations_v2"] == 20
    assert snapshot.storage_version == (999 if engine >= "2" else 64)
    assert not check(snapshot.folder / "reflection.duckdb").problems


async def test_a_symlink_within_the_data_directory_is_followed_including_the_wal_of_its_target(data_dir, taker):
    """DuckDB resolves a symlink before it names the WAL."""
    create(data_dir, commits=3)
    (data_dir / "elsewhere").mkdir()
    (data_dir / "reflection.duckdb").rename(data_dir / "elsewhere" / "real.duckdb")
    (data_dir / "reflection.duckdb").symlink_to("elsewhere/real.duckdb")
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 4")
        assert (data_dir / "elsewhere" / "real.duckdb.wal").exists()
        snapshot = await taker.take("reflection")
    assert [file.name for file in snapshot.files] == ["reflection.duckdb", "reflection.duckdb.wal"]
    assert snapshot.rows["conversations_v2"] == 7
    assert snapshot.fingerprint.files[0].size == (data_dir / "elsewhere" / "real.duckdb").stat().st_size


@pytest.mark.parametrize("name", ["reflection.duckdb", "reflection.duckdb.wal"])
async def test_a_symlink_out_of_the_data_directory_is_a_permanent_error(name, data_dir, tmp_path, staging, taker):
    create(data_dir, commits=3)
    secret = tmp_path / "secret"
    secret.write_bytes((data_dir / "reflection.duckdb").read_bytes())
    (data_dir / name).unlink(missing_ok=True)
    (data_dir / name).symlink_to(secret)
    with pytest.raises(
        SnapshotError, match=f"{name} is a symlink that is broken or leads out of the data directory"
    ) as caught:
        await taker.take("reflection")
    assert (caught.value.transient, "akosha_agent_data_dir" in caught.value.hint) == (False, True)
    assert list(staging.iterdir()) == []


async def test_tables_of_any_name_are_read(data_dir, taker):
    data_dir.mkdir()
    with duckdb.connect(str(data_dir / "knowledge_graph_a'b \"c.duckdb")) as base:
        base.execute('CREATE SCHEMA "odd ""one"""')
        base.execute('CREATE TABLE "odd ""one"""."select ""x" AS SELECT range AS t, \'x\' || range AS s FROM range(7)')
        base.execute('CREATE TABLE t AS SELECT 1 AS "the row", NULL AS nothing')
        base.execute("CREATE VIEW v AS SELECT * FROM read_csv('/etc/passwd')")
    snapshot = await taker.take("knowledge_graph_a'b \"c")
    assert (snapshot.verified, dict(snapshot.rows)) == (True, {"t": 1, 'odd "one".select "x': 7})


async def test_verification_can_be_switched_off(data_dir, staging):
    create(data_dir, commits=3)
    snapshot = await DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock(), verify=False).take("reflection")
    assert (snapshot.verified, snapshot.unverified_reason) == (False, "verification is switched off")
    assert sha256(snapshot.folder / "reflection.duckdb") == snapshot.files[0].sha256


async def test_a_file_newer_than_duckdb_is_copied_and_unverified(data_dir, staging, taker):
    create(data_dir, commits=3)
    give_version(data_dir / "reflection.duckdb", 999)
    with capture_logs() as logs:
        snapshot = await taker.take("reflection")
    assert "version" in snapshot.unverified_reason.lower()
    assert (snapshot.verified, snapshot.header_iteration, snapshot.rows) == (False, 1, {})
    assert sha256(data_dir / "reflection.duckdb") == snapshot.files[0].sha256
    assert "snapshot_suspect" not in {entry["event"] for entry in logs}


def overwritten(path):
    with path.open("r+b") as file:
        file.seek(12_288 + 262_144 + 1000)
        file.write(os.urandom(200_000))


def cut(path):
    os.truncate(path, 12_288 + 262_144)


@pytest.mark.parametrize("damage", [overwritten, cut])
async def test_a_damaged_database_is_verified_twice_and_copied_unverified(damage, data_dir, staging, taker):
    create(data_dir, commits=30)
    damage(data_dir / "reflection.duckdb")
    with capture_logs() as logs:
        snapshot = await taker.take("reflection")
    assert [entry["event"] for entry in logs].count("snapshot_suspect") == 1
    assert not snapshot.verified
    assert snapshot.unverified_reason.startswith("DuckDB cannot read it: ")
    assert str(staging) not in snapshot.unverified_reason
    assert sha256(data_dir / "reflection.duckdb") == snapshot.files[0].sha256
    assert list(staging.iterdir()) == [snapshot.folder]


async def test_a_snapshot_cancelled_during_verification_leaves_no_child_and_no_copy(data_dir, staging, taker):
    create(data_dir, commits=3)
    taking = asyncio.create_task(taker.take("reflection"))
    child = await asyncio.to_thread(wait_for_child)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not child.is_running()
    assert list(staging.iterdir()) == []


def wait_for_child():
    """Return the child once it exists."""
    while True:
        for child in children(CHILD):
            return child


def test_the_child_ends_with_its_parent(data_dir):
    """The child ends when its standard input ends, which happens however the parent dies."""
    create(data_dir, commits=3)
    child = subprocess.Popen(
        [sys.executable, "-m", CHILD, str(data_dir / "reflection.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    answer, _ = child.communicate(timeout=60)
    assert (child.returncode, answer) == (3, b"")


async def test_only_successful_snapshots_are_measured(data_dir, staging):
    create(data_dir, commits=3)
    measured = []

    class Measured(NoMeter):
        def snapshot(self, database, seconds, raw_bytes):
            measured.append((database, seconds, raw_bytes))

    taker = DuckdbSnapshotTaker(data_dir, staging, clock=ManualClock(), verify=False, meter=Measured())
    snapshot = await taker.take("reflection")
    with pytest.raises(SnapshotError):
        await taker.take("knowledge_graph_none")
    assert measured == [("reflection", 0.0, sum(file.size for file in snapshot.files))]
