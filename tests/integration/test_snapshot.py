"""Snapshots of databases that lie still: what is copied, what is said of it, and that nothing else is touched."""

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
import psutil
import pytest
from structlog.testing import capture_logs

from agent.adapters.duckdb import DuckdbSnapshotTaker, child_process
from agent.adapters.duckdb.child_process import CHILD, Exchange
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError
from agent.ports import NoMeter
from tests.support.clock import ManualClock
from tests.support.session_buddy import REAL, STATES, Writer, check, create

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the databases that Session-Buddy wrote are not here")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "state" / "staging"


@pytest.fixture
def taker(data_dir, staging):
    return DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock())


def copied(state, data_dir):
    shutil.copytree(REAL / state, data_dir)
    for path in data_dir.iterdir():
        path.chmod(0o644)


def looks(directory):
    """All that can be seen of files without reading them."""
    return {
        path.name: (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        for path in directory.iterdir()
        for status in [path.lstat()]
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def give_version(path, version):
    """Patch the format version; the engine looks at the main header's checksum first, so that is made right too."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 12, version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", data[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    struct.pack_into("<Q", data, 0, checksum)
    path.write_bytes(data)


@needs_real_data
@pytest.mark.parametrize("state", STATES)
async def test_session_buddys_own_databases_arrive_whole_in_every_state(state, data_dir, taker):
    conversations, reflections, entities, relationships = STATES[state].rows
    copied(state, data_dir)
    before = looks(data_dir)
    survey = await taker.survey()
    assert set(survey) == {"reflection", "knowledge_graph"}
    rows = {}
    for database in survey:
        snapshot = await taker.take(database)
        assert (snapshot.verified, snapshot.unverified_reason) == (True, "")
        rows |= snapshot.rows
        # Reading a WAL through leaves the copy's bytes alone, and nothing else lies beside them.
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
    assert looks(data_dir) == before
    assert await taker.survey() == survey


async def test_a_copy_whose_check_hangs_is_given_unverified_and_the_child_is_killed(data_dir, staging, monkeypatch):
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
    assert [file.name for file in snapshot.files] == ["reflection.duckdb"], "it is there to be uploaded all the same"


async def test_a_check_that_takes_long_and_goes_on_is_waited_for(data_dir, staging):
    """A child tells of its progress: silence is counted from one sign to the next, not from the question."""
    program = (
        "import sys, time; from agent.adapters.duckdb.frames import BEAT, framed\n"
        "sys.stdin.readline()\n"
        "for _ in range(8): sys.stdout.buffer.write(BEAT); sys.stdout.buffer.flush(); time.sleep(0.2)\n"
        "sys.stdout.buffer.write(framed(b'{\"verdict\": 1}')); sys.stdout.buffer.flush()"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert await Exchange(child, 60, stall_seconds=1.2).ask(b"verify", "verdict") == 1
    await child_process.end(child)


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


async def test_without_a_data_directory_the_survey_says_so_and_there_is_nothing_to_sweep(taker):
    with pytest.raises(SnapshotError, match=r"does not exist \(start Session-Buddy once"):
        await taker.survey()
    await taker.sweep()


async def test_the_survey_names_databases_and_what_pretends_to_be_one_but_nothing_else(data_dir, taker):
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


async def test_a_commit_shows_in_the_survey_though_the_main_file_does_not_change(engine, data_dir, taker):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        writer.run("commit 2")
        before = (await taker.survey())["reflection"]
        writer.run("commit 1")
        after = (await taker.survey())["reflection"]
    assert before != after
    assert (before.files[0], before.header) == (after.files[0], after.header)


async def test_taking_leaves_the_writers_lock_in_place(data_dir, taker):
    attempt = f"import duckdb; duckdb.connect({str(data_dir / 'reflection.duckdb')!r}, read_only=True)"
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        await taker.discard(await taker.take("reflection"))
        other = subprocess.run([sys.executable, "-c", attempt], check=False, capture_output=True, text=True)
        assert "lock" in other.stderr
        writer.run("commit 1")
        assert writer.close() == 0


async def test_the_only_copy_of_a_first_session_survives_its_writer(engine, data_dir, taker):
    with Writer(data_dir, "--paused", engine=engine) as writer:
        writer.run("commit 20")
        writer.crash()
    assert (data_dir / "reflection.duckdb").stat().st_size == 12_288
    snapshot = await taker.take("reflection")
    assert snapshot.rows["conversations_v2"] == 20
    assert snapshot.storage_version == (999 if engine >= "2" else 64)
    assert not check(snapshot.folder / "reflection.duckdb").problems


async def test_a_link_within_the_data_directory_is_followed_to_the_sidecar_of_the_file_behind_it(data_dir, taker):
    """The engine resolves a link before it names the WAL."""
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
async def test_a_link_out_of_the_data_directory_is_refused_for_good(name, data_dir, tmp_path, staging, taker):
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


async def test_every_table_is_read_whatever_it_is_called(data_dir, taker):
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


async def test_a_file_newer_than_the_engine_is_copied_and_marked(data_dir, staging, taker):
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
async def test_a_damaged_database_is_looked_at_twice_then_copied_and_marked(damage, data_dir, staging, taker):
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


async def test_cancelled_in_the_check_it_leaves_neither_child_nor_copy(data_dir, staging, taker):
    create(data_dir, commits=3)
    taking = asyncio.create_task(taker.take("reflection"))
    child = await asyncio.to_thread(checking)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not child.is_running()
    assert list(staging.iterdir()) == []


def checking():
    """Return the child once it is there."""
    while True:
        for child in psutil.Process().children():
            try:
                if CHILD in child.cmdline():
                    return child
            except psutil.Error:
                continue


def test_the_child_ends_with_its_parent(data_dir):
    """The end of its standard input is the sign: it comes however the parent dies."""
    create(data_dir, commits=3)
    child = subprocess.Popen(
        [sys.executable, "-m", CHILD, str(data_dir / "reflection.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    answer, _ = child.communicate(timeout=60)
    assert (child.returncode, answer) == (3, b"")


async def test_a_snapshot_is_measured_and_one_that_fails_is_not(data_dir, staging):
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
