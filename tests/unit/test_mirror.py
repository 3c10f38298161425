"""The files of the mirror: what is kept and removed, and that no changed byte is returned."""

import errno
import os
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.block_checksums import BLOCK_BYTES, Digests
from agent.adapters.duckdb.mirror import MainFile, MirrorDirectory, MirrorState, OriginalStat

REFLECTION, GRAPH = "reflection", "knowledge_graph"
SIZES = [12_288, BLOCK_BYTES, 2 * BLOCK_BYTES + 1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mirror"


@pytest.fixture
def mirror(path):
    return MirrorDirectory(path)


def state_of(copy, **known):
    digests = Digests()
    digests.update(memoryview(copy.read_bytes()))
    return MirrorState(main=MainFile.of(digests), **known)


@pytest.fixture
def put(tmp_path, mirror):
    """Return a function that puts a copy into the mirror, removes it, and returns its SHA-256."""

    def put_copy(content=b"x", database=REFLECTION, *, size=12_288, into=mirror, **known):
        copy = tmp_path / "copy"
        copy.write_bytes((content * size)[:size])
        copy.chmod(0o600)
        state = state_of(copy, **known)
        into.put(database, copy, state)
        copy.unlink()
        return state.main.sha256

    return put_copy


def names(path, database=REFLECTION):
    folder = path / database
    return {entry.name for entry in folder.iterdir()} - {"record"} if folder.exists() else set()


def test_digests_do_not_depend_on_the_pieces(tmp_path):
    data = memoryview(os.urandom(2 * BLOCK_BYTES + 3))
    whole, pieces = Digests(), Digests()
    whole.update(data)
    for start in range(0, len(data), 100_003):
        pieces.update(data[start : start + 100_003])
    assert MainFile.of(whole) == MainFile.of(pieces)
    assert (whole.size, len(whole.checksums)) == (len(data), 3)


@pytest.mark.parametrize("size", SIZES)
async def test_the_latest_file_is_kept_across_restarts(size, path, put):
    original, verified_at = OriginalStat(1, 2, 3, 4), datetime(2026, 1, 2, tzinfo=UTC)
    sha256 = put(size=size, original=original, verified_at=verified_at)
    for mirror in (MirrorDirectory(path), MirrorDirectory(path)):
        latest = mirror.latest(REFLECTION)
        assert (latest.main.sha256, latest.original, latest.verified_at) == (sha256, original, verified_at)
        assert mirror.is_intact(REFLECTION, latest)
        assert (await mirror.file(REFLECTION, sha256)).stat().st_size == size
        assert await mirror.file(GRAPH, sha256) is None


def test_files_and_directories_are_private(path, put):
    put()
    for entry in (path, *path.rglob("*")):
        assert stat.S_IMODE(entry.stat().st_mode) == (0o700 if entry.is_dir() else 0o600)


async def test_retained_files_are_removed_if_no_patches_are_made_any_more(path, mirror, put):
    first, second = put(b"a"), put(b"b")
    await mirror.retain(REFLECTION, {first, second})
    assert names(path) == {second}, "the first was replaced before it was retained"
    third = put(b"c")
    assert names(path) == {second, third}
    MirrorDirectory(path).sweep()
    assert names(path) == {second, third}
    MirrorDirectory(path, makes_patches=False).sweep()
    assert names(path) == {third}


async def test_only_the_latest_and_retained_files_are_kept(path, mirror, put):
    first, second = put(b"1"), put(b"2")
    assert names(path) == {second}
    await mirror.retain(REFLECTION, {second, first})
    third, fourth = put(b"3"), put(b"4")
    assert names(path) == {second, fourth}
    restarted = MirrorDirectory(path)
    assert await restarted.file(REFLECTION, second) == path / REFLECTION / second
    assert await restarted.file(REFLECTION, third) is None
    await restarted.retain(REFLECTION, ())
    assert names(path) == {fourth}
    await restarted.retain(GRAPH, {fourth})
    assert not (path / GRAPH).exists()


async def test_the_files_of_removed_databases_are_removed(path, mirror, put):
    put(), put(database=GRAPH)
    mirror.keep_only({GRAPH})
    assert [entry.name for entry in path.iterdir()] == [GRAPH]
    assert mirror.latest(REFLECTION) is None


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 0),
        lambda file: flip(file, BLOCK_BYTES),
        lambda file: flip(file, -1),
        lambda file: os.truncate(file, BLOCK_BYTES),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
)
async def test_a_changed_file_is_not_returned_and_removed(damage, restart, path, mirror, put):
    kept = put(b"1")
    await mirror.retain(REFLECTION, {kept})
    sha256 = put(b"2", size=SIZES[-1])
    damage(path / REFLECTION / sha256)
    if restart:
        mirror = MirrorDirectory(path)
    with capture_logs() as logs:
        assert not mirror.is_intact(REFLECTION, mirror.latest(REFLECTION))
    assert [entry["event"] for entry in logs] == ["mirror_damaged"]
    assert mirror.latest(REFLECTION) is None
    assert names(path) == {kept}
    assert await mirror.file(REFLECTION, sha256) is None
    assert await mirror.file(REFLECTION, kept)
    assert put(b"2", size=SIZES[-1], into=mirror) == sha256
    assert await mirror.file(REFLECTION, sha256)


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda record, at=at: flip(record, at) for at in (0, 64, 65, 100, -2)),
        lambda record: os.truncate(record, 100),
        lambda record: record.write_bytes(b""),
        lambda record: record.unlink(),
        lambda record: (record.unlink(), record.mkdir()),
        lambda record: (record.unlink(), record.symlink_to(record.with_name("elsewhere"))),
        lambda record: (shutil.rmtree(record.parent), record.parent.write_bytes(b"")),
        lambda record: (shutil.rmtree(record.parent), record.parent.symlink_to("/etc")),
    ],
)
def test_a_mirror_with_a_damaged_record_is_removed(damage, path, put):
    put()
    damage(path / REFLECTION / "record")
    mirror = MirrorDirectory(path)
    assert mirror.latest(REFLECTION) is None
    assert not (path / REFLECTION).is_symlink()
    assert not (path / REFLECTION).exists()
    assert Path("/etc/passwd").exists()
    put(into=mirror)
    assert mirror.latest(REFLECTION)


def test_files_that_the_record_does_not_name_are_removed_at_the_first_use(path, put):
    sha256 = put()
    folder = path / REFLECTION
    (folder / ("0" * 64)).write_bytes(b"linked by a process that was killed before it wrote the record")
    (folder / "record.draft").write_bytes(b"{")
    (folder / "notes").mkdir()
    (folder / "notes" / "of a person").touch()
    assert MirrorDirectory(path).latest(REFLECTION).main.sha256 == sha256
    assert names(path) == {sha256}


def test_without_the_setting_nothing_is_kept_and_the_mirror_is_removed(path, put):
    put()
    mirror = MirrorDirectory(path, is_on=False)
    assert mirror.latest(REFLECTION) is None
    put(into=mirror)
    assert mirror.latest(REFLECTION) is None
    mirror.sweep()
    assert not path.exists()


async def test_all_files_are_removed_to_free_the_disk(path, mirror, put):
    put(), put(database=GRAPH)
    assert mirror.size() > 2 * 12_288
    assert mirror.drop_all("the disk is full")
    assert (mirror.size(), list(path.iterdir())) == (0, [])
    assert not mirror.drop_all("the disk is full")


def test_nothing_is_kept_on_a_disk_without_room_for_another_copy(path, mirror, put, monkeypatch):
    put(b"1")
    usage = shutil.disk_usage(path)._replace(free=12_287)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with capture_logs() as logs:
        put(b"2"), put(b"3")
    assert [entry["reason"] for entry in logs] == ["the disk has no room for another copy"], "logged once"
    assert (mirror.latest(REFLECTION), names(path)) == (None, set())


@pytest.mark.parametrize("call", ["hardlink_to", "rename", "mkdir"])
def test_a_mirror_that_cannot_be_written_is_removed(call, path, mirror, put, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    if call != "mkdir":
        put(b"1")
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(Path, call, refused)
        put(b"2")
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("mirror_dropped", "Operation not permitted")]
    assert (mirror.latest(REFLECTION), names(path)) == (None, set())
    assert put(b"3") == mirror.latest(REFLECTION).main.sha256
