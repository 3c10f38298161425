"""Snapshots with a mirror: the main file is copied, linked or compared, and no wrong bytes get into a copy."""

import hashlib
import os
import shutil
from dataclasses import replace
from datetime import UTC, timedelta

import pytest
from structlog.testing import capture_logs

from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbSnapshotTaker, MirrorDirectory, bracketed_copy
from agent.adapters.duckdb.child_process import WarmChild
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError, StagingFull
from tests.support.session_buddy import REAL, STATES, Writer, check, create

MAIN = "reflection.duckdb"


class ShiftedClock(SystemClock):
    """The system's clock, moved by `shift`."""

    shift = timedelta()

    def now(self):
        return super().now() + self.shift


class Reads:
    """Counts how the main file was read: copied, or compared with the mirror's file."""

    def __init__(self, monkeypatch):
        self.copied = self.compared = 0
        run, has_same_bytes = bracketed_copy.FileCopy.run, bracketed_copy.FileCopy.has_same_bytes

        def counted_run(copy, hashing):
            self.copied += copy.found.name == MAIN
            run(copy, hashing)

        def counted_comparison(copy, other, size):
            self.compared += copy.found.name == MAIN
            return has_same_bytes(copy, other, size)

        monkeypatch.setattr(bracketed_copy.FileCopy, "run", counted_run)
        monkeypatch.setattr(bracketed_copy.FileCopy, "has_same_bytes", counted_comparison)

    def take(self):
        """Return the numbers since the last call."""
        found = self.copied, self.compared
        self.copied = self.compared = 0
        return found


COPIED, COMPARED, LINKED = (1, 0), (0, 1), (0, 0)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def clock():
    return ShiftedClock()


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


@pytest.fixture
def settled(monkeypatch):
    """Files that were just written count as settled."""
    monkeypatch.setattr(bracketed_copy, "SETTLED_SECONDS", 0)


@pytest.fixture
async def warm():
    """The child of all takers of a test: to start one takes longer than to verify a copy."""
    warm = WarmChild(SystemClock())
    yield warm
    await warm.end()


@pytest.fixture
def new_taker(data_dir, tmp_path, clock, warm):
    """Return a function that returns the taker of a process that starts."""
    return lambda **options: DuckdbSnapshotTaker(
        data_dir,
        tmp_path / "staging",
        clock=clock,
        warm=warm,
        mirror=MirrorDirectory(tmp_path / "mirror", **options),
    )


@pytest.fixture
def taker(new_taker):
    return new_taker()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mirrored(tmp_path):
    """Return the names of the mirror's main files of `reflection`."""
    return {path.name for path in (tmp_path / "mirror" / "reflection").glob("*") if path.name != "record"}


async def taken(taker, data_dir, database="reflection"):
    """Take a snapshot, and check that its files are the originals and that it is consistent. Return it."""
    snapshot = await taker.take(database)
    assert {file.name: file.sha256 for file in snapshot.files} == {
        path.name: sha256(path) for path in snapshot.folder.iterdir()
    }
    assert {file.name: file.sha256 for file in snapshot.files} == {
        path.name: sha256(path) for path in data_dir.glob(f"{database}.duckdb*")
    }
    assert snapshot.verified, snapshot.unverified_reason
    return snapshot


async def test_a_main_file_that_did_not_change_is_linked_and_the_sidecars_are_copied(
    engine, data_dir, taker, reads, settled, tmp_path
):
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused", engine=engine) as writer:
        first = await taken(taker, data_dir)
        assert reads.take() == COPIED
        for commits in (35, 40):
            writer.run("commit 5")
            snapshot = await taken(taker, data_dir)
            assert reads.take() == LINKED
            assert (snapshot.rows["conversations_v2"], snapshot.storage_version) == (commits, first.storage_version)
            assert not check(snapshot.folder / MAIN).problems
            assert snapshot.fingerprint == (await taker.survey())["reflection"]
        assert mirrored(tmp_path) == {first.files[0].sha256}
        writer.run("checkpoint")
        changed = await taken(taker, data_dir)
        assert reads.take() == COPIED
        assert changed.rows == snapshot.rows
        assert mirrored(tmp_path) == {changed.files[0].sha256}


async def test_a_main_file_that_did_not_change_is_linked_after_a_restart(data_dir, new_taker, reads, settled):
    create(data_dir, commits=3)
    for expected in (COPIED, LINKED):
        taker = new_taker()
        await taker.sweep()
        await taken(taker, data_dir)
        assert reads.take() == expected
        await taker.sweep()


async def test_a_file_written_less_than_two_seconds_before_the_copy_is_compared_the_next_time(
    data_dir, taker, reads, monkeypatch
):
    create(data_dir, commits=3)
    prepare, now = bracketed_copy._prepare, [0]
    monkeypatch.setattr(bracketed_copy, "_prepare", lambda *arguments: prepare(*arguments) and now[0])
    written = (data_dir / MAIN).stat().st_ctime_ns
    # In seconds after the last write; a time in the future of the file system's clock counts as new.
    for seconds, expected in (
        (1.9, COPIED), (10, COMPARED), (10, LINKED), (1.9, COMPARED), (10, COMPARED), (2, LINKED), (-3600, COMPARED),
    ):  # fmt: skip
        now[0] = written + int(seconds * 10**9)
        await taken(taker, data_dir)
        assert reads.take() == expected, seconds


async def test_a_write_within_the_resolution_of_the_time_is_found(data_dir, taker, reads, monkeypatch):
    """Blocks were written, the header was not, and the stats are those of the copy."""
    create(data_dir, commits=3)
    main = data_dir / MAIN
    stats = bracketed_copy.OriginalStat.of(main.stat())
    monkeypatch.setattr(bracketed_copy.OriginalStat, "of", lambda _: stats)
    await taken(taker, data_dir)
    data = main.read_bytes()
    with main.open("r+b") as file:
        file.seek(len(data) - 100)
        file.write(bytes(100) if any(data[-100:]) else b"x" * 100)
    await taker.take("reflection")
    assert reads.take() == (2, 1)
    snapshot = await taker.take("reflection")
    assert snapshot.files[0].sha256 == sha256(main)


@pytest.mark.parametrize("change", ["touch", "replace", "move away and back"])
async def test_the_same_bytes_with_other_stats_are_compared_and_linked(
    change, data_dir, taker, reads, settled, tmp_path
):
    create(data_dir, commits=3)
    await taken(taker, data_dir)
    main, other = data_dir / MAIN, tmp_path / "other"
    match change:
        case "touch":
            main.touch()
        case "replace":
            shutil.copyfile(main, other)
            other.replace(main)
        case _:
            main.rename(other)
            other.rename(main)
    reads.take()
    await taken(taker, data_dir)
    assert reads.take() == COMPARED
    await taken(taker, data_dir)
    assert reads.take() == LINKED


async def test_another_database_of_the_same_name_and_size_is_copied(data_dir, taker, reads, settled, tmp_path):
    create(data_dir, commits=3)
    await taken(taker, data_dir)
    create(tmp_path / "other", commits=4, own=True)
    shutil.copyfile(tmp_path / "other" / MAIN, data_dir / MAIN)
    reads.take()
    snapshot = await taken(taker, data_dir)
    assert (reads.copied, snapshot.rows["conversations_v2"]) == (1, 4)


async def test_a_checkpoint_while_the_sidecars_are_read_repeats_the_attempt(
    data_dir, taker, reads, settled, monkeypatch
):
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        await taken(taker, data_dir)
        writer.run("commit 3")
        check_prefix, left = bracketed_copy.FileCopy.check_prefix, [1]

        def checkpointed(copy):
            check_prefix(copy)
            if left[0]:
                left[0] = 0
                writer.run("checkpoint")

        monkeypatch.setattr(bracketed_copy.FileCopy, "check_prefix", checkpointed)
        reads.take()
        snapshot = await taken(taker, data_dir)
    assert reads.take() == COPIED
    assert snapshot.rows["conversations_v2"] == 36
    assert not check(snapshot.folder / MAIN).problems


async def test_a_main_file_written_while_the_sidecars_are_read_repeats_the_attempt(
    data_dir, taker, reads, settled, monkeypatch
):
    """DuckDB writes blocks before the header."""
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        await taken(taker, data_dir)
        check_prefix, left = bracketed_copy.FileCopy.check_prefix, [1]

        def written(copy):
            check_prefix(copy)
            if left[0]:
                left[0] = 0
                with (data_dir / MAIN).open("r+b") as file:
                    file.seek(0, os.SEEK_END)
                    file.write(bytes(262_144))

        monkeypatch.setattr(bracketed_copy.FileCopy, "check_prefix", written)
        reads.take()
        await taken(taker, data_dir)
        assert reads.take() == COPIED


async def test_snapshots_during_a_busy_session_are_consistent(engine, data_dir, taker, reads):
    """Some link the main file, others copy it: the writer commits and checkpoints all the time."""
    create(data_dir, commits=30)
    with Writer(data_dir, "--slow-checkpoints", "20", "--checkpoint-every", "40", "--interval", "0.01", engine=engine):
        rows = 30
        for _ in range(12):
            snapshot = await taker.take("reflection")
            found = check(snapshot.folder / MAIN)
            assert (found.problems, snapshot.verified) == ((), True), snapshot.unverified_reason
            assert snapshot.rows["conversations_v2"] >= rows
            rows = snapshot.rows["conversations_v2"]
            await taker.discard(snapshot)


@pytest.mark.parametrize("state", STATES)
async def test_databases_of_session_buddy_are_linked_in_every_state(state, data_dir, taker, reads, settled):
    if not REAL.is_dir():
        pytest.skip("the databases of Session-Buddy are missing")
    shutil.copytree(REAL / state, data_dir)
    for path in data_dir.iterdir():
        path.chmod(0o644)
    first = await taken(taker, data_dir)
    second = await taken(taker, data_dir)
    assert (reads.take(), second) == ((1, 0), replace(first, folder=second.folder))


# ------------------------------------------------------------------------------------------------------ damage


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("at", [20_000, -1])
async def test_a_flipped_bit_in_the_mirror_is_found_before_the_file_is_used(
    at, restart, data_dir, new_taker, reads, settled, tmp_path
):
    create(data_dir, commits=30)
    taker = new_taker()
    first = await taken(taker, data_dir)
    await taker.discard(first)
    file = tmp_path / "mirror" / "reflection" / first.files[0].sha256
    status = file.stat()
    flip(file, at)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    if restart:
        taker = new_taker()
    reads.take()
    with capture_logs() as logs:
        await taken(taker, data_dir)
    assert reads.take() == COPIED
    assert [entry["event"] for entry in logs if entry["event"].startswith("mirror")] == ["mirror_damaged"]
    assert sha256(file) == first.files[0].sha256
    await taken(taker, data_dir)
    assert reads.take() == LINKED


@pytest.mark.parametrize(
    "change",
    [
        lambda file: flip(file, 0),
        lambda file: os.truncate(file, 20_000),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.symlink_to(file.parent / "record")),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
)
async def test_a_file_of_the_mirror_that_was_changed_or_replaced_is_not_used(
    change, data_dir, taker, reads, settled, tmp_path
):
    create(data_dir, commits=3)
    first = await taken(taker, data_dir)
    await taker.discard(first)
    change(tmp_path / "mirror" / "reflection" / first.files[0].sha256)
    reads.take()
    await taken(taker, data_dir)
    assert reads.take() == COPIED
    await taken(taker, data_dir)
    assert reads.take() == LINKED


async def test_a_copy_with_a_linked_file_that_looks_damaged_is_taken_again_from_the_original(
    data_dir, taker, reads, settled, tmp_path, monkeypatch
):
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        first = await taken(taker, data_dir)
        await taker.discard(first)
        file = tmp_path / "mirror" / "reflection" / first.files[0].sha256
        file.write_bytes(file.read_bytes()[:12_288] + bytes(file.stat().st_size - 12_288))
        monkeypatch.setattr(MirrorDirectory, "_is_intact", lambda *_: True)
        reads.take()
        with capture_logs() as logs:
            await taken(taker, data_dir)
    assert reads.take() == (1, 1), "compared with the original, then copied"
    assert "snapshot_suspect" in {entry["event"] for entry in logs}


async def test_a_damaged_wal_removes_no_main_file_from_the_mirror(data_dir, taker, settled, tmp_path):
    """The base of the next patch among them: without it, the next checkpoint is sent whole."""
    create(data_dir, commits=30)
    base = await taken(taker, data_dir)
    await taker.discard(base)
    mirror = taker._mirror
    await mirror.retain("reflection", [base.files[0].sha256])
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        writer.run("checkpoint")
        writer.run("commit 3")
        latest = await taken(taker, data_dir)
        await taker.discard(latest)
        wal = data_dir / f"{MAIN}.wal"
        flip(wal, wal.stat().st_size // 2)
        assert not (await taker.take("reflection")).verified
    digests = [base.files[0].sha256, latest.files[0].sha256]
    assert len(set(digests)) == 2
    assert [await mirror.file("reflection", digest) is not None for digest in digests] == [True, True]


# ------------------------------------------------------------------------------------------------- verification


@pytest.fixture
def verifications(monkeypatch):
    """The verifications since the start: whether each read all of the copy."""
    from agent.adapters.duckdb import snapshot_taker

    verify, found = snapshot_taker.verify, []

    async def recorded(copy, *, whole, **options):
        found.append(whole)
        return await verify(copy, whole=whole, **options)

    monkeypatch.setattr(snapshot_taker, "verify", recorded)
    return found


async def test_a_linked_file_is_read_again_by_duckdb_once_a_day(data_dir, taker, clock, settled, verifications):
    create(data_dir, commits=3)
    for shift in (0, 23, 24, 25, 0, 1):
        clock.shift = timedelta(hours=shift)
        await taken(taker, data_dir)
    # The first reads all, as does the one after a day, and the one after the clock was set back.
    assert verifications == [True, False, True, False, True, False]


async def test_a_wal_is_replayed_when_the_main_file_is_linked(data_dir, taker, settled, verifications):
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        await taken(taker, data_dir)
        writer.run("commit 3")
        wal = data_dir / f"{MAIN}.wal"
        flip(wal, wal.stat().st_size // 2)
        snapshot = await taker.take("reflection")
    assert (snapshot.verified, snapshot.rows) == (False, {})
    assert snapshot.unverified_reason.startswith("DuckDB cannot read it: ")
    assert verifications == [True, False, True]


# --------------------------------------------------------------------------------------------- disk, removal, setting


async def test_a_full_disk_removes_the_mirror_before_it_is_an_error(
    data_dir, taker, reads, settled, tmp_path, monkeypatch
):
    create(data_dir, commits=30)
    first = await taken(taker, data_dir)
    await taker.discard(first)
    assert await taker.free_bytes() > shutil.disk_usage(tmp_path).free
    create(tmp_path / "other", commits=31, own=True)
    shutil.copyfile(tmp_path / "other" / MAIN, data_dir / MAIN)
    usage, free = shutil.disk_usage, [10**6]

    def disk_usage(path):
        return usage(path)._replace(free=usage(path).free if not mirrored(tmp_path) else free[0])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with capture_logs() as logs:
        snapshot = await taken(taker, data_dir)
    assert snapshot.rows["conversations_v2"] == 31
    assert ("mirror_dropped", "the disk is full") in {(entry["event"], entry.get("reason")) for entry in logs}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10**6))
    (data_dir / MAIN).write_bytes((data_dir / MAIN).read_bytes() + bytes(262_144))
    with pytest.raises(StagingFull):
        await taker.take("reflection")
    assert mirrored(tmp_path) == set()


async def test_the_mirror_is_dropped_before_a_sync_if_the_disk_is_nearly_full(
    data_dir, taker, settled, tmp_path, monkeypatch
):
    """The ledger is written before a database is copied: it needs the space first."""
    create(data_dir, commits=3)
    await taker.sweep()
    await taken(taker, data_dir)
    await taker.survey()
    assert mirrored(tmp_path)
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=2**20))
    await taker.survey()
    assert mirrored(tmp_path) == set()


async def test_the_mirror_of_a_removed_database_is_removed_by_the_holder_of_the_state_directory(
    data_dir, new_taker, tmp_path
):
    create(data_dir, commits=3)
    holder, other = new_taker(), new_taker()
    await holder.sweep()
    for database in await holder.survey():
        await taken(holder, data_dir, database)
    (data_dir / MAIN).unlink()
    await other.survey()
    assert mirrored(tmp_path)
    await holder.survey()
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == ["knowledge_graph"]
    shutil.rmtree(data_dir)
    with pytest.raises(SnapshotError):
        await holder.survey()
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == ["knowledge_graph"], "it may be mounted again"


async def test_without_the_setting_every_snapshot_copies_the_main_file(data_dir, new_taker, reads, settled, tmp_path):
    create(data_dir, commits=3)
    await taken(new_taker(), data_dir)
    taker = new_taker(is_on=False)
    await taker.sweep()
    assert not (tmp_path / "mirror").exists()
    reads.take()
    for _ in range(2):
        await taken(taker, data_dir)
        assert reads.take() == COPIED


async def test_nobody_writes_to_a_linked_file(data_dir, taker, settled, tmp_path):
    """DuckDB replays the WAL of a copy in memory."""
    create(data_dir, commits=30)
    with Writer(data_dir, "--paused") as writer:
        writer.run("commit 3")
        first = await taken(taker, data_dir)
        file = tmp_path / "mirror" / "reflection" / first.files[0].sha256
        before = file.stat()
        writer.run("commit 3")
        second = await taken(taker, data_dir)
        async with DuckdbMemoryReader().open(second.folder / MAIN, "reflection", zone=UTC) as source:
            assert sum([len(page) async for page in source.pages()]) == 72
    after = file.stat()
    assert (second.folder / MAIN).samefile(file)
    assert (after.st_mtime_ns, sha256(file)) == (before.st_mtime_ns, first.files[0].sha256)
    await taker.discard(second)
    assert sha256(file) == first.files[0].sha256
