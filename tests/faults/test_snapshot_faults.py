"""Snapshots of files that are not databases, on a full disk, and with a crash of DuckDB."""

import asyncio
import json
import os
import resource
import shutil
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from agent.adapters.duckdb import DuckdbSnapshotTaker, child_process, snapshot_taker as taker_module
from agent.adapters.duckdb.child_process import CHILD
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError, StagingFull
from tests.support import zygote
from tests.support.processes import children
from tests.support.session_buddy import create

PROCESS = Path(__file__).with_name("snapshot_process.py")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging"


@pytest.fixture
def taker(data_dir, staging):
    return DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock())


def restricted(*arguments):
    """Take a snapshot in a restricted process; return its output."""
    answer = zygote.run(
        [sys.executable, str(PROCESS), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def empty(path):
    path.touch()


def garbage(path):
    path.write_bytes(os.urandom(100_000))


def cut_header(path):
    path.write_bytes(b"\0" * 8 + b"DUCK" + b"\0" * 100)


def directory(path):
    path.mkdir()


def fifo(path):
    os.mkfifo(path)


def dangling(path):
    path.symlink_to("nothing.duckdb")


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, "not a complete DuckDB database: it has 0 bytes"),
        (garbage, "not a complete DuckDB database: it does not start with a DuckDB header"),
        (cut_header, "not a complete DuckDB database: it has 112 bytes"),
        (directory, "is a directory, not a database"),
        (fifo, "is not a regular file"),
        (dangling, "is a symlink that is broken or leads out of the data directory"),
        (loop, "is a symlink that is broken or leads out of the data directory"),
    ],
)
async def test_a_file_that_is_not_a_database_is_a_permanent_error(make, words, data_dir, staging, taker):
    data_dir.mkdir()
    make(data_dir / "reflection.duckdb")
    async with asyncio.timeout(60):
        survey = await taker.survey()
        with pytest.raises(SnapshotError, match=words) as caught:
            await taker.take("reflection")
    assert "reflection.duckdb" in caught.value.message
    assert (caught.value.transient, bool(caught.value.hint)) == (False, True)
    assert not staging.exists() or list(staging.iterdir()) == []
    assert survey


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root's rights can be given up on Linux only")
@pytest.mark.parametrize("name", ["reflection.duckdb", "reflection.duckdb.wal"])
def test_a_denied_read_is_a_transient_error_with_the_command(name, data_dir, staging):
    """The permission may be given back without a change of the files."""
    create(data_dir, commits=1)
    (data_dir / name).touch()
    (data_dir / name).chmod(0)
    output = restricted(data_dir, staging, "unprivileged")
    assert (output["error"], output["transient"]) == ("SnapshotError", True)
    assert output["message"] == f"no permission to read {name}"
    assert output["hint"] == f"chmod u+r {data_dir / name}"


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root's rights can be given up on Linux only")
def test_an_unreadable_data_directory_is_an_error_that_names_the_setting(data_dir, staging):
    create(data_dir, commits=1)
    data_dir.chmod(0)
    output = restricted(data_dir, staging, "unprivileged")
    data_dir.chmod(0o700)
    assert (output["error"], output["transient"]) == ("SnapshotError", True)
    assert "akosha_agent_data_dir" in output["hint"]


async def test_an_unusable_staging_directory_is_an_error_that_names_the_setting(data_dir, tmp_path):
    create(data_dir, commits=1)
    (tmp_path / "file").touch()
    taker = DuckdbSnapshotTaker(data_dir, tmp_path / "file" / "staging", clock=SystemClock())
    with pytest.raises(SnapshotError, match="cannot create the staging directory") as caught:
        await taker.take("reflection")
    assert "akosha_agent_state_dir" in caught.value.hint
    assert caught.value.transient
    with pytest.raises(SnapshotError, match="cannot read the staging directory"):
        await taker.sweep()


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root's rights can be given up on Linux only")
def test_a_copy_to_a_read_only_staging_directory_is_a_transient_error(data_dir, staging):
    create(data_dir, commits=1)
    staging.mkdir(mode=0o500)
    output = restricted(data_dir, staging, "unprivileged")
    assert (output["error"], output["transient"]) == ("SnapshotError", True)
    assert "akosha_agent_state_dir" in output["hint"]


async def test_a_copy_that_would_not_fit_is_not_started(data_dir, staging, taker):
    """A sparse database, larger than the free space of the disk, which the test does not have to fill."""
    create(data_dir, commits=1)
    size = shutil.disk_usage(data_dir).free + 2**30
    os.truncate(data_dir / "reflection.duckdb", size)
    with pytest.raises(StagingFull) as caught:
        await taker.take("reflection")
    assert caught.value.transient
    assert f"{size + 16 * 2**20:,} bytes needed" in caught.value.message
    assert str(staging) in caught.value.message
    assert "akosha_agent_state_dir" in caught.value.hint
    assert list(staging.iterdir()) == []


def test_a_disk_that_fills_up_during_the_copy_is_the_same_error(data_dir, staging):
    """The kernel refuses to write more, as with a full disk or an exhausted quota."""
    create(data_dir, commits=1)
    output = restricted(data_dir, staging, "file-limit", 300_000)
    size = (data_dir / "reflection.duckdb").stat().st_size
    assert (output["error"], output["transient"]) == ("StagingFull", True)
    assert f"{size:,} bytes needed" in output["message"]
    assert list(staging.iterdir()) == []


def send_to_children(number, times):
    """Send a signal to the first `times` children that verify a copy, as soon as each has started."""
    signalled = set()
    while len(signalled) < times:
        for child in children(CHILD):
            if child.pid not in signalled:
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(number)
                    signalled.add(child.pid)


@pytest.mark.parametrize(
    ("number", "reason", "inconclusive"),
    [
        (signal.SIGKILL, "the verification was killed (SIGKILL)", True),
        (signal.SIGSEGV, "DuckDB crashed on it (SIGSEGV)", False),
    ],
)
async def test_a_crash_of_the_verification_leaves_the_copy_unverified(
    number, reason, inconclusive, data_dir, staging, taker
):
    create(data_dir, commits=3)
    signalling = asyncio.create_task(asyncio.to_thread(send_to_children, number, 2))
    snapshot = await taker.take("reflection")
    await signalling
    assert (snapshot.verified, snapshot.unverified_reason, snapshot.rows) == (False, reason, {})
    assert snapshot.inconclusive == inconclusive
    assert (snapshot.folder / "reflection.duckdb").read_bytes() == (data_dir / "reflection.duckdb").read_bytes()
    assert list(staging.iterdir()) == [snapshot.folder]


async def test_a_deleted_copy_is_a_transient_error(data_dir, staging, taker, monkeypatch):
    create(data_dir, commits=1)

    async def verified(copy, **how):
        shutil.rmtree(copy.parent)
        return await verify(copy, **how)

    verify = taker_module.verify
    monkeypatch.setattr(taker_module, "verify", verified)
    with pytest.raises(SnapshotError, match="take-") as refused:
        await taker.take("reflection")
    assert refused.value.transient
    assert "akosha_agent_state_dir" in refused.value.hint
    assert not list(staging.iterdir())


async def test_a_copy_that_could_not_be_removed_is_removed_by_the_next_survey(data_dir, staging, taker):
    """Removing a directory opens it, which fails while the process has no descriptor left."""
    create(data_dir, commits=1)
    snapshot = await taker.take("reflection")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as lowest_free:
        number = lowest_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
    try:
        await taker.discard(snapshot)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert snapshot.folder.exists()
    await taker.survey()
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_child_that_crashes_or_is_killed_once_is_ignored(number, data_dir, taker):
    """After a crash the database is copied again; after a kill the copy is verified again."""
    create(data_dir, commits=3)
    signalling = asyncio.create_task(asyncio.to_thread(send_to_children, number, 1))
    snapshot = await taker.take("reflection")
    await signalling
    assert (snapshot.verified, snapshot.rows["conversations_v2"]) == (True, 3)


async def test_a_missing_child_program_is_inconclusive(data_dir, taker, monkeypatch):
    """As in an agent that still runs after an upgrade has replaced its files."""
    create(data_dir, commits=3)
    monkeypatch.setattr(child_process, "CHILD", "agent.adapters.duckdb.gone")
    snapshot = await taker.take("reflection")
    assert (snapshot.unverified_reason, snapshot.inconclusive) == (
        "the verification ended early (exit status 1)",
        True,
    )


async def test_a_missing_duckdb_is_inconclusive(data_dir, taker, monkeypatch, tmp_path):
    create(data_dir, commits=3)
    (tmp_path / "duckdb.py").write_text("raise ImportError('duckdb is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    snapshot = await taker.take("reflection")
    assert (snapshot.unverified_reason, snapshot.inconclusive) == ("the verification failed: duckdb is gone", True)


async def test_a_verification_timeout_leaves_the_copy_unverified(data_dir, staging):
    create(data_dir, commits=3)
    taker = DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock(), verify_timeout_seconds=0.01)
    snapshot = await taker.take("reflection")
    assert (snapshot.verified, snapshot.unverified_reason) == (False, "the verification was not done after 0.01 s")
    assert not snapshot.inconclusive, "it would take as long the next time"
    assert not children(CHILD)


async def test_a_table_larger_than_the_memory_limit_is_read_completely(data_dir, taker):
    """Rows are read as a stream, within the memory limits of DuckDB and of the process."""
    import duckdb

    data_dir.mkdir()
    with duckdb.connect(str(data_dir / "reflection.duckdb")) as base:
        base.execute("CREATE TABLE wide AS SELECT [random()::FLOAT for x in range(384)] AS v FROM range(95_000)")
    snapshot = await taker.take("reflection")
    assert (snapshot.files[0].size > 140 * 10**6, dict(snapshot.rows)) == (True, {"wide": 95_000})


def test_the_header_layout_is_that_of_the_installed_duckdb(data_dir):
    """The iteration in the header grows with each checkpoint."""
    import duckdb

    from agent.adapters.duckdb.source import HEADER_BYTES, Header

    data_dir.mkdir()
    seen = []
    with duckdb.connect(str(data_dir / "x.duckdb")) as base:
        base.execute("CREATE TABLE t(i INTEGER)")
        for _ in range(4):
            base.execute("INSERT INTO t VALUES (1)")
            base.execute("CHECKPOINT")
            seen.append(Header.parse((data_dir / "x.duckdb").read_bytes()[:HEADER_BYTES]).iteration)
    assert seen == list(range(seen[0], seen[0] + 4))
    assert struct.unpack_from("<Q", (data_dir / "x.duckdb").read_bytes(), 12)[0] >= 64
