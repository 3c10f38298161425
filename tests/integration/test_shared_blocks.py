"""Copies in a directory share blocks with their source: which ones, when they are read, and where damage ends."""

import errno
import fcntl
import io
import itertools
import os
import shutil
import subprocess
import sys

import pytest

from agent.adapters import fs
from agent.adapters.directory_store import DirectoryStore, incoming as incoming_module, layout, leftovers, sharing
from agent.adapters.directory_store.incoming import Incoming
from agent.domain.errors import CopyUnsupported, StoreError, UnreadableObject
from agent.ports import StoredObject
from tests.support import zygote
from tests.support.files import folder_on_another_disk

DATA = bytes(range(256)) * 2000
METADATA = {"sha256": "ab", "size": "512000"}


def key_of(number):
    return f"systems/mac/uploads/20260101_{number:06}_mac/reflection.duckdb"


async def put(store, key, data=DATA, metadata=METADATA):
    async def body():
        yield data

    return await store.put(key, body(), metadata=metadata, part_bytes=2**20, progress=lambda _: None)


async def copy(store, source, key, tag):
    expected = StoredObject(source, len(DATA), METADATA, etag=tag)
    return await store.copy(source, key, expected=expected)


async def fetch(store, key):
    return b"".join([piece async for piece in store.get(key)])


@pytest.fixture
def root(tmp_path):
    return tmp_path / "nas"


@pytest.fixture
def store(root):
    return DirectoryStore(root)


async def uploads(store, count):
    """Make uploads of an unchanged object: the first is put, each other one is copied from the one before."""
    tag = (await put(store, key_of(0))).etag
    for number in range(1, count):
        await copy(store, key_of(number - 1), key_of(number), tag)
    return tag


def inode(root, number):
    return (root / key_of(number)).stat().st_ino


def flip(path):
    """Change one bit of a file in place, with the old mtime."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def reads(monkeypatch):
    """The reads of whole files for their digest."""
    done, read = [], sharing.Checks.read

    def counted(self, file, progress):
        done.append(os.fstat(file.fileno()).st_ino)
        return read(self, file, progress)

    monkeypatch.setattr(sharing.Checks, "read", counted)
    return done


async def test_ten_uploads_of_an_unchanged_object_take_two_physical_copies(store, root):
    await uploads(store, 10)
    inodes = [inode(root, number) for number in range(10)]
    assert len(set(inodes)) == 2
    assert inodes[0] == inodes[1]
    assert all(one != other for one, other in itertools.pairwise(inodes[1:]))
    du = subprocess.run(["du", "-sk", root / "systems"], capture_output=True, text=True, check=True).stdout
    assert int(du.split()[0]) * 1024 < 2.2 * len(DATA)


@pytest.mark.parametrize("kept", [(7, 8, 9), (1, 8, 9), (0, 9), (3, 5, 9)])
async def test_after_a_prune_the_next_copies_restore_two_physical_copies(store, root, kept):
    tag = await uploads(store, 10)
    await store.delete([key_of(number) for number in range(10) if number not in kept])
    for number in kept:
        assert await fetch(store, key_of(number)) == DATA
    assert len({inode(root, number) for number in kept}) == (2 if 8 in kept else 1)
    await copy(store, key_of(9), key_of(10), tag)
    if len(kept) == 2:
        await copy(store, key_of(10), key_of(11), tag)
    assert len({inode(root, number) for number in (*kept, 10)}) == 2


@pytest.mark.parametrize(("kept", "copies"), [((3, 5, 9), 2), ((1, 3, 5, 7), 2), ((5, 9), 1), ((7, 8, 9), 2)])
async def test_after_a_prune_no_three_uploads_keep_one_physical_copy(store, root, kept, copies):
    """Whatever the rules of the prune are: only those that keep the two newest uploads keep both copies."""
    await uploads(store, 10)
    await store.delete([key_of(number) for number in range(10) if number not in kept])
    await store.separate_copies("systems/")
    assert len({inode(root, number) for number in kept}) == copies
    for number in kept:
        assert await fetch(store, key_of(number)) == DATA
        assert (await store.head(key_of(number))).metadata == METADATA
    inodes = [inode(root, number) for number in kept]
    await store.separate_copies("systems/")
    assert [inode(root, number) for number in kept] == inodes


async def test_a_sweep_copies_nothing_because_syncs_wait_for_it(store, root):
    await uploads(store, 10)
    kept = (3, 5, 9)
    await store.delete([key_of(number) for number in range(10) if number not in kept])
    await store.sweep("systems/")
    assert len({inode(root, number) for number in kept}) == 1


async def test_the_separation_of_copies_reports_its_progress_and_flushes_as_it_copies(store, root, monkeypatch):
    """On a slow disk, it takes longer than the limit on the time without progress."""
    await uploads(store, 10)
    await store.delete([key_of(number) for number in range(10) if number not in (3, 5, 9)])
    monkeypatch.setattr(sharing, "READ_BYTES", 2**16)
    monkeypatch.setattr(incoming_module, "READ_BYTES", 2**16)
    monkeypatch.setattr(incoming_module, "FLUSH_BYTES", 2**16)
    monkeypatch.delattr("os.copy_file_range", raising=False)
    steps, flushed, sync = [], [], fs.sync
    monkeypatch.setattr(fs, "sync", lambda descriptor: (flushed.append(1), sync(descriptor)))
    await store.separate_copies("systems/", progress=steps.append)
    assert sum(steps) == 2 * len(DATA), "read once, and copied"
    assert steps.count(0) == 3 + 8, "three objects are compared, and the copy is read in eight pieces"
    assert len(flushed) > 7


async def test_an_only_copy_that_changes_while_it_is_copied_replaces_nothing(store, root, monkeypatch):
    await uploads(store, 10)
    kept = (3, 5, 9)
    await store.delete([key_of(number) for number in range(10) if number not in kept])
    copy_from = Incoming.copy_from

    def damaging(self, source, progress):
        flip(source)
        copy_from(self, source, progress)

    monkeypatch.setattr(Incoming, "copy_from", damaging)
    await store.separate_copies("systems/")
    assert len({inode(root, number) for number in kept}) == 1
    assert not [path for path in (root / ".akosha" / "incoming").rglob("*") if path.is_file()]


async def test_an_object_is_read_once_in_seven_days_whatever_happens_to_its_links(store, root, reads, monkeypatch):
    tag = await uploads(store, 6)
    assert len(reads) == len(set(reads)) == 2
    await store.delete([key_of(0), key_of(3)])
    for number in range(6, 10):
        await copy(DirectoryStore(root), key_of(number - 1), key_of(number), tag)
    assert len(reads) == 2
    monkeypatch.setattr(sharing, "CHECK_SECONDS", 0)
    await copy(store, key_of(9), key_of(10), tag)
    assert len(reads) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tag": 1}', b'{"checked_at": "x"}', b"[" * 100_000])
async def test_a_damaged_record_of_a_check_is_as_good_as_none(store, root, content):
    await uploads(store, 2)
    (record,) = (root / ".akosha" / "checked").iterdir()
    record.write_bytes(content)
    assert sharing.Checks(root).find((root / key_of(1)).stat()) is None
    await store.sweep("")
    assert not record.exists()


async def test_records_of_checks_are_swept_when_they_no_longer_count(store, root, monkeypatch):
    await uploads(store, 2)
    await store.sweep("systems/")
    (record,) = (root / ".akosha" / "checked").iterdir()
    monkeypatch.setattr(sharing, "CHECK_SECONDS", 0)
    await store.sweep("systems/")
    assert not record.exists()


async def test_a_check_dated_in_the_future_does_not_count(store, root):
    await put(store, key_of(0))
    status = (root / key_of(0)).stat()
    checks = sharing.Checks(root, now=lambda: 1000.0)
    checks.keep(status, sharing.Check("sha256:0", 2000.0))
    assert checks.find(status) is None
    checks.keep(status, sharing.Check("sha256:0", 900.0))
    assert checks.find(status) is not None


async def test_a_flipped_bit_in_the_only_physical_copy_is_not_copied(store, root):
    tag = await uploads(store, 2)
    flip(root / key_of(0))
    with pytest.raises(CopyUnsupported, match="different bytes"):
        await copy(store, key_of(1), key_of(2), tag)
    assert not (root / key_of(2)).exists()
    assert not any((root / ".akosha" / "incoming").rglob("*"))
    await put(store, key_of(2))  # as the caller does then
    assert inode(root, 2) != inode(root, 1)
    await copy(store, key_of(2), key_of(3), tag)
    assert [await fetch(store, key_of(number)) == DATA for number in range(4)] == [False, False, True, True]


async def test_a_flipped_bit_in_one_of_two_physical_copies_leaves_the_other_uploads_whole(store, root):
    tag = await uploads(store, 6)
    flip(root / key_of(4))
    damaged = [number for number in range(6) if inode(root, number) == inode(root, 4)]
    assert 5 not in damaged
    for number in (6, 7, 8):
        await copy(store, key_of(number - 1), key_of(number), tag)
    for number in range(9):
        assert (await fetch(store, key_of(number)) == DATA) == (number not in damaged)
        assert ((await store.inspect(key_of(number))).etag == tag) == (number not in damaged)
    assert len({inode(root, number) for number in range(6, 9)}) == 2


def failing(*_args, **_how):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class BadSector(io.FileIO):
    readinto = readall = failing


@pytest.fixture
def unreadable(store, root, monkeypatch):
    """A function that makes the disk fail to read an object, and fail entirely with `gone`."""

    def damage(key, *, gone=False):
        open_file = layout.open_file

        def opened(path):
            return io.BufferedReader(BadSector(path)) if path == root / key else open_file(path)

        for module in (layout, sharing, incoming_module):
            monkeypatch.setattr(module, "open_file", opened)
        monkeypatch.setattr("os.copy_file_range", failing, raising=False)
        if gone:
            monkeypatch.setattr("os.fsync", failing)

    return damage


@pytest.mark.parametrize("links", [True, False])
async def test_an_object_in_an_unreadable_sector_is_not_copied_and_counts_as_damaged(
    store, root, monkeypatch, unreadable, links
):
    tag = (await put(store, key_of(0))).etag
    if not links:
        monkeypatch.setattr(sharing.os, "link", failing)
    unreadable(key_of(0))
    with pytest.raises(CopyUnsupported, match="Input/output error"):
        await copy(store, key_of(0), key_of(1), tag)
    with pytest.raises(UnreadableObject):
        await store.inspect(key_of(0))
    await put(store, key_of(1))  # as the caller does then
    assert await fetch(store, key_of(1)) == DATA


async def test_an_object_whose_metadata_is_in_an_unreadable_sector_is_replaced(store, unreadable):
    tag = (await put(store, key_of(0))).etag
    unreadable(f".akosha/metadata/{key_of(0)}.json")
    with pytest.raises(UnreadableObject):
        await store.head(key_of(0))
    with pytest.raises(CopyUnsupported):
        await copy(store, key_of(0), key_of(1), tag)
    await put(store, key_of(0), b"other")
    assert await fetch(store, key_of(0)) == b"other"


async def test_an_object_on_a_disk_that_fails_entirely_does_not_count_as_damaged(store, root, unreadable):
    tag = (await put(store, key_of(0))).etag
    unreadable(key_of(0), gone=True)
    for reading in (copy(store, key_of(0), key_of(1), tag), store.inspect(key_of(0))):
        with pytest.raises(StoreError, match="Input/output error") as failure:
            await reading
        assert type(failure.value) is StoreError
        assert failure.value.transient


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EIO, errno.EACCES])
async def test_where_hard_links_are_refused_the_bytes_are_copied(store, root, monkeypatch, number, reads):
    def refused(*_args, **_how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sharing.os, "link", refused)
    await uploads(store, 4)
    assert len({inode(root, number) for number in range(4)}) == 4
    assert [await fetch(store, key_of(number)) for number in range(4)] == [DATA] * 4
    assert reads == [], "only what is shared is read for its check"


async def test_a_file_on_another_device_is_copied(tmp_path, root):
    """The kernel refuses a link, and may refuse `copy_file_range`."""
    with folder_on_another_disk(tmp_path) as folder:
        source = folder / "object"
        source.write_bytes(DATA)
        with source.open("rb") as origin:
            assert not sharing.hard_link(origin, source, tmp_path / "link")
            with (tmp_path / "copy").open("w+b") as target:
                assert sharing.copy_range(origin, target, lambda _: None) == len(DATA)
        assert (tmp_path / "copy").read_bytes() == DATA
        assert not (tmp_path / "link").exists()


async def test_a_copy_works_without_copy_file_range(store, monkeypatch, root):
    def unsupported(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("os.copy_file_range", unsupported, raising=False)
    monkeypatch.setattr(sharing.os, "link", unsupported)
    await uploads(store, 2)
    assert await fetch(store, key_of(1)) == DATA


async def test_reflinks_are_preferred_and_count_as_one_physical_copy(store, root, monkeypatch):
    """A file system with reflinks, simulated: the blocks are copied, the store cannot tell."""
    made = []

    def reflink(origin, target):
        origin.seek(0)
        target.write(origin.read())
        target.flush()
        made.append(1)
        return True

    monkeypatch.setattr(sharing, "reflink", reflink)
    tag = await uploads(store, 2)
    assert len({inode(root, number) for number in range(2)}) == 2
    assert made == [1]
    await copy(store, key_of(1), key_of(2), tag)
    assert made == [1, 1], "the attempt shows that copy_file_range would make another one"
    for number in range(3, 7):
        await copy(store, key_of(number - 1), key_of(number), tag)
    physical = [sharing.physical_copy(root, key_of(number)) for number in range(7)]
    assert len(set(physical)) == 2
    assert physical[5] != physical[6]
    assert [await fetch(store, key_of(number)) for number in range(7)] == [DATA] * 7
    assert (await store.head(key_of(6))).metadata == METADATA


async def test_an_upload_that_is_pruned_during_the_copy_is_not_needed(store, root, monkeypatch):
    tag = await uploads(store, 3)
    to_share = sharing.to_share

    def pruned_meanwhile(*arguments):
        chosen = to_share(*arguments)
        assert chosen == key_of(1)
        (root / chosen).unlink()
        return chosen

    monkeypatch.setattr(sharing, "to_share", pruned_meanwhile)
    await copy(store, key_of(2), key_of(3), tag)
    assert await fetch(store, key_of(3)) == DATA


async def test_a_source_that_was_replaced_meanwhile_is_not_linked(store, root, tmp_path):
    await put(store, key_of(0))
    with (root / key_of(0)).open("rb") as origin:
        await put(store, key_of(0), b"other")
        assert not sharing.hard_link(origin, root / key_of(0), tmp_path / "nas" / "link")
    assert not (root / "link").exists()


async def test_an_object_that_was_changed_in_place_since_it_was_linked_does_not_get_its_name(store, root):
    """No program may change an object in place; the store notices it nevertheless."""
    tag = (await put(store, key_of(0))).etag
    file = Incoming(root, key_of(1))
    assert file.share(key_of(0), tag, lambda _: None)
    with (root / key_of(0)).open("r+b") as changed:
        changed.write(b"changed")
    with pytest.raises(CopyUnsupported, match="changed while"):
        file.commit(METADATA)
    file.discard()
    assert not (root / key_of(1)).exists()
    assert not (root / ".akosha" / "checked").exists()


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from agent.adapters.directory_store import DirectoryStore, incoming, sharing
from agent.ports import StoredObject

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

owner, name = {"read": (sharing.Checks, "read"), "record": (incoming.Incoming, "_write_record"),
               "move": (incoming, "_move"), "keep": (sharing.Checks, "keep")}[sys.argv[2]]
setattr(owner, name, kill)
expected = StoredObject(sys.argv[3], int(sys.argv[5]), {"sha256": "ab", "size": "512000"}, etag=sys.argv[6])
asyncio.run(DirectoryStore(Path(sys.argv[1])).copy(sys.argv[3], sys.argv[4], expected=expected))
"""


@pytest.mark.parametrize("point", ["read", "record", "move", "keep"])
async def test_a_copy_killed_at_a_link_leaves_the_object_or_nothing_and_is_swept(store, root, point):
    tag = (await put(store, key_of(0))).etag
    arguments = [str(root), point, key_of(0), key_of(1), str(len(DATA)), tag]
    killed = zygote.run([sys.executable, "-c", KILLED, *arguments])
    assert killed.returncode == -9
    assert await fetch(store, key_of(0)) == DATA
    assert (root / key_of(1)).exists() == (point == "keep")
    await store.sweep("systems/")
    assert [path for path in (root / ".akosha" / "incoming").rglob("*") if path.is_file()] == []
    assert (root / key_of(0)).stat().st_nlink == (2 if point == "keep" else 1)
    await copy(store, key_of(0), key_of(1), tag)
    assert await fetch(store, key_of(1)) == DATA
    assert (root / key_of(0)).stat().st_nlink == 2


async def test_a_sweep_spares_the_link_of_a_put_in_progress_on_nfs(store, root, monkeypatch):
    """An exclusive lock needs a file that is open for writing there, and the link has the age of the object."""
    flock = fcntl.flock

    def nfs_flock(descriptor, operation):
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", nfs_flock)
    monkeypatch.setattr(leftovers, "_is_older_than", None)  # only locks count
    tag = (await put(store, key_of(0))).etag
    os.utime(root / key_of(0), (0, 0))
    incoming = Incoming(root, key_of(1))
    assert incoming.share(key_of(0), tag, lambda _: None)
    assert await store.count_unfinished("systems/") == 0
    assert await store.sweep("systems/") == 0
    incoming.commit(METADATA)
    assert await fetch(store, key_of(1)) == DATA
    killed = Incoming(root, key_of(2))
    killed._file.close()
    assert await store.count_unfinished("systems/") == 1
    assert await store.sweep("systems/") == 1


async def test_a_copy_of_the_directory_that_lost_its_links_works(store, root, tmp_path):
    tag = await uploads(store, 4)
    shutil.copytree(root, tmp_path / "moved")
    moved = DirectoryStore(tmp_path / "moved")
    await copy(moved, key_of(3), key_of(4), tag)
    assert [await fetch(moved, key_of(number)) for number in range(5)] == [DATA] * 5
