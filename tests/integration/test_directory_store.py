"""The directory store: file layout, keys and symlinks, killed processes, and errors of the file system."""

import asyncio
import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.adapters.directory_store import DirectoryStore, incoming, store as store_module
from agent.adapters.directory_store.errors import translate
from agent.adapters.gzip_members import GzipMembers
from agent.domain.errors import NamingError, NoSuchObject, NotPermitted, StoreError
from agent.ports import Creation, StoredObject
from tests.support import zygote
from tests.support.files import folder_on_another_disk

ROOT = Path(__file__).parents[2]
KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
MIB = 2**20


async def put(store, key, data, metadata=None):
    async def body():
        yield data

    return await store.put(key, body(), metadata=metadata or {}, part_bytes=5 * MIB, progress=lambda _: None)


async def fetch(store, key):
    return b"".join([piece async for piece in store.get(key)])


def visible(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and ".akosha" not in p.parts)


def incoming_files(root):
    return [path for path in (root / ".akosha" / "incoming").rglob("*") if path.is_file()]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "nas"


@pytest.fixture
def store(root):
    return DirectoryStore(root)


async def test_objects_are_plain_files_under_their_keys(store, root, tmp_path):
    staged = tmp_path / "staged"
    staged.write_bytes(b"memories " * 100_000)
    body = GzipMembers(member_bytes=100_000).stream(staged)
    await store.put(KEY, body, metadata={"sha256": "ab"}, part_bytes=MIB, progress=lambda _: None)
    assert visible(root) == [KEY]
    assert gzip.decompress((root / KEY).read_bytes()) == staged.read_bytes()


async def test_internal_files_are_not_listed_or_accessible(store, root):
    await put(store, KEY, b"x", {"sha256": "ab"})
    assert [item.key async for item in store.list("")] == [KEY]
    for key in (f".akosha/metadata/{KEY}.json", ".akosha/x", ".AKOSHA/x"):
        with pytest.raises(NamingError):
            await store.head(key)


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/", "./a", "a/./b", "a\0b", "..\\out"]
)
async def test_a_key_cannot_leave_the_root(store, root, key):
    for call in (put(store, key, b"x"), store.head(key), fetch(store, key), store.delete([key])):
        with pytest.raises(NamingError):
            await call
    assert not (root.parent / "out").exists()


async def test_a_symlink_cannot_lead_out_of_the_root(store, root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    await put(store, "a/b", b"x")
    (root / "link").symlink_to(outside)
    (root / "a" / "file").symlink_to(outside / "secret")
    for call in (
        put(store, "link/new", b"x"),
        fetch(store, "link/secret"),
        fetch(store, "a/file"),
        store.head("a/file"),
        put(store, "a/file", b"x"),
        store.delete(["link/secret"]),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            await call
    assert [item.key async for item in store.list("")] == ["a/b"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]


async def test_a_pipe_in_place_of_an_object_or_a_record_is_not_opened(store, root):
    """Opening it would block a thread until another process writes to the pipe."""
    await put(store, KEY, b"ours", {"sha256": "ab"})
    record = root / ".akosha" / "metadata" / f"{KEY}.json"
    record.unlink()
    (root / "systems" / "pipes").mkdir()
    unfinished = root / ".akosha" / "incoming" / "systems" / "pipes" / "x"
    unfinished.mkdir(parents=True)
    for pipe in (record, root / "systems" / "pipes" / "x", unfinished / "0-0"):
        os.mkfifo(pipe)
    async with asyncio.timeout(30):
        assert (await store.head(KEY)).metadata == {}
        for call in (store.head, store.inspect, lambda key: fetch(store, key)):
            with pytest.raises(NoSuchObject):
                await call("systems/pipes/x")
        with pytest.raises(NoSuchObject):
            await store.copy("systems/pipes/x", "systems/copy", expected=StoredObject("systems/pipes/x", 0))
        assert await store.sweep("systems/") == 0
        await put(store, KEY, b"new", {"sha256": "cd"})
        await put(store, "systems/pipes/x", b"new")
    assert (await store.head(KEY)).metadata == {"sha256": "cd"}
    assert await fetch(store, "systems/pipes/x") == b"new"


@pytest.mark.parametrize("content", ["[" * 50_000, '{"size": 4, "metadata": {"a": "' + "b" * 70_000 + '"}}'], ids=len)
async def test_a_record_that_another_program_has_written_is_ignored(store, root, content):
    await put(store, KEY, b"ours", {"sha256": "ab"})
    (root / ".akosha" / "metadata" / f"{KEY}.json").write_text(content)
    assert (await store.head(KEY)).metadata == {}


async def test_a_record_of_a_terabyte_is_not_read_into_memory(store, root):
    await put(store, KEY, b"ours", {"sha256": "ab"})
    os.truncate(root / ".akosha" / "metadata" / f"{KEY}.json", 2**40)
    assert (await store.head(KEY)).metadata == {}
    await put(store, KEY, b"ours", {"sha256": "cd"})
    assert (await store.head(KEY)).metadata == {"sha256": "cd"}


async def test_metadata_is_used_only_for_the_object_that_it_was_put_with(store, root):
    """An object whose file was replaced by hand has no metadata, rather than those of the old object."""
    await put(store, KEY, b"ours", {"sha256": "ab"})
    (root / KEY).write_bytes(b"somebody else's")
    assert (await store.head(KEY)).metadata == {}


@pytest.mark.parametrize("data", [b"{", b"[]", b'"x"', b'{"size": 4}', b"[" * 100_000, b'{"size": 4, "metadata": 5}'])
async def test_an_object_whose_record_is_damaged_has_no_metadata(store, root, data):
    await put(store, KEY, b"ours", {"sha256": "ab"})
    (root / ".akosha" / "metadata" / f"{KEY}.json").write_bytes(data)
    assert (await store.head(KEY)).metadata == {}


@pytest.mark.parametrize("step", ["unlink", "record", "rename"])
async def test_a_crash_during_a_replacement_never_mixes_object_and_metadata(store, root, monkeypatch, step):
    """The old and new objects have the same size, which is the worst case."""
    await put(store, KEY, b"old", {"sha256": "old"})

    class CrashError(BaseException):
        pass

    def crash(*_):
        raise CrashError

    if step == "unlink":
        monkeypatch.setattr(incoming.fs, "sync_directory", crash)
    elif step == "record":
        monkeypatch.setattr(incoming.Incoming, "_write_record", crash)
    else:
        moves = []
        real = incoming._move
        monkeypatch.setattr(
            incoming, "_move", lambda *a: real(*a) if not moves.append(a) and len(moves) == 1 else crash()
        )
    with pytest.raises(CrashError):
        await put(store, KEY, b"new", {"sha256": "new"})
    monkeypatch.undo()
    found = await store.head(KEY)
    data = await fetch(store, KEY)
    assert found.metadata.get("sha256", data.decode()) == data.decode()


async def test_the_root_is_created_but_not_its_parent(tmp_path):
    """A missing mount point must not be created, because the disk is not mounted."""
    made = DirectoryStore(tmp_path / "nas")
    assert await made.is_available()
    assert not (tmp_path / "nas").exists()
    await put(made, "a", b"x")
    assert (tmp_path / "nas").stat().st_mode & 0o777 == 0o700

    missing = DirectoryStore(tmp_path / "not mounted" / "nas")
    assert not await missing.is_available()
    with pytest.raises(StoreError, match="mounted") as failure:
        await put(missing, "a", b"x")
    assert not failure.value.transient
    assert not (tmp_path / "not mounted").exists()


@pytest.fixture
def disk(tmp_path):
    """A directory on another device than `tmp_path`."""
    with folder_on_another_disk(tmp_path) as folder:
        yield folder


def link(root, folder):
    root.unlink(missing_ok=True)
    root.symlink_to(folder)


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "during"])
async def test_nothing_is_put_into_the_empty_mount_point_of_an_unmounted_disk(meanwhile, tmp_path, disk):
    root, mount_point = tmp_path / "nas", tmp_path / "empty"
    mount_point.mkdir()
    link(root, disk)
    store = DirectoryStore(root)
    await put(store, "a", b"x")

    async def body():
        link(root, mount_point)
        yield b"y"

    if not meanwhile:
        link(root, mount_point)
    with pytest.raises(StoreError, match="mounted") as failure:
        await store.put("b", body(), metadata={"sha256": "b"}, part_bytes=MIB, progress=lambda _: None)
    assert failure.value.transient
    assert [path for path in mount_point.rglob("*") if path.is_file()] == []
    link(root, disk)
    await put(store, "b", b"y")


async def test_a_disk_that_is_mounted_with_another_device_number_is_the_same_once_an_object_is_read(tmp_path, disk):
    root, again = tmp_path / "nas", tmp_path / "again"
    link(root, disk)
    store = DirectoryStore(root)
    await put(store, "a", b"x")
    shutil.copytree(disk, again)
    link(root, again)
    with pytest.raises(StoreError, match="mounted"):
        await put(store, "b", b"y")
    assert await fetch(store, "a") == b"x"
    await put(store, "b", b"y")


async def test_a_chosen_target_may_be_on_another_disk(tmp_path, disk):
    root, other = tmp_path / "nas", tmp_path / "other"
    other.mkdir()
    link(root, disk)
    store = DirectoryStore(root)
    await put(store, "a", b"x")
    link(root, other)
    assert await store.create("owner.json", b"{}") is Creation.CREATED
    await put(store, "b", b"y")


async def test_a_listing_of_a_root_that_does_not_exist_is_empty(store):
    assert [item async for item in store.list("")] == []
    with pytest.raises(NoSuchObject):
        await store.head("a")
    await store.delete(["a"])
    assert await store.sweep("") == 0


@pytest.mark.parametrize("path", ["nas", "nas/memories", "nas/memories/mine"])
async def test_a_file_in_place_of_the_root_or_a_parent_is_reported(tmp_path, path):
    (tmp_path / "nas").write_bytes(b"")
    store = DirectoryStore(tmp_path / path)
    assert await store.is_available()
    with pytest.raises(StoreError, match="move it away") as failure:
        await put(store, "a", b"x")
    assert not failure.value.transient
    assert str(store._root) in str(failure.value)


async def test_a_symlink_to_an_unmounted_directory_is_unavailable(tmp_path):
    (tmp_path / "nas").symlink_to(tmp_path / "not mounted")
    assert not await DirectoryStore(tmp_path / "nas").is_available()
    assert not await DirectoryStore(tmp_path / "nas" / "memories").is_available()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
async def test_a_mount_that_returns_errors_is_unavailable(store, monkeypatch, number):
    def failing(*_args, **_how):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", failing)
        available = await store.is_available()
    assert not available


@pytest.mark.parametrize(("number", "hint"), [(errno.EACCES, "chmod or chown"), (errno.EROFS, "remount")])
async def test_a_root_that_cannot_be_written_is_available_and_a_put_fails_with_a_hint(
    store, root, monkeypatch, number, hint
):
    root.mkdir()

    def refused(*_args, **_how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(incoming, "_create", refused)
    assert await store.is_available()
    with pytest.raises(NotPermitted, match=hint) as failure:
        await put(store, "a", b"x")
    assert not failure.value.transient


async def test_a_mount_that_hangs_counts_as_available_and_blocks_one_thread(store, monkeypatch):
    import threading

    release = threading.Event()
    asked = []

    def hang():
        asked.append(1)
        release.wait(30)
        return True

    monkeypatch.setattr(store, "_answers", hang)
    monkeypatch.setattr(store_module, "AVAILABLE_SECONDS", 0.05)
    assert await store.is_available()
    assert await store.is_available()
    assert asked == [1]
    release.set()
    monkeypatch.setattr(store_module, "AVAILABLE_SECONDS", 10)
    assert await store.is_available()
    await store.aclose()


async def test_a_full_disk_leaves_no_file_and_fails_with_a_hint(store, root, monkeypatch):
    await put(store, "before", b"x")

    def full(self, pieces):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(incoming.Incoming, "write", full)
    with pytest.raises(StoreError, match="make room") as failure:
        await put(store, KEY, bytes(3 * MIB))
    assert not failure.value.transient
    assert visible(root) == ["before"]
    assert incoming_files(root) == []


@pytest.mark.parametrize(
    ("number", "kind", "transient", "hint"),
    [
        (errno.ENOSPC, StoreError, False, "make room"),
        (errno.EDQUOT, StoreError, False, "make room"),
        (errno.EACCES, NotPermitted, False, "chmod"),
        (errno.EPERM, NotPermitted, False, "chmod"),
        (errno.EROFS, NotPermitted, False, "remount"),
        (errno.EFBIG, StoreError, False, "4 GiB"),
        (errno.EIO, StoreError, True, "check the disk"),
        (errno.ESTALE, StoreError, True, "check the disk"),
        (errno.ENOTCONN, StoreError, True, "check the disk"),
    ],
)
def test_system_errors_are_translated_with_a_hint(tmp_path, number, kind, transient, hint):
    error = translate(OSError(number, os.strerror(number)), "write", tmp_path, KEY)
    assert type(error) is kind
    assert error.transient is transient
    assert hint in error.hint
    assert KEY in str(error)


async def test_a_key_below_another_object_is_refused(store):
    await put(store, "a", b"x")
    with pytest.raises(StoreError):
        await put(store, "a/b", b"x")
    assert await fetch(store, "a") == b"x"


WRITER = """
import asyncio, sys
from pathlib import Path
from agent.adapters.directory_store import DirectoryStore
async def body():
    for _ in range(3):
        yield bytes(2**20)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(DirectoryStore(Path(sys.argv[1])).put(sys.argv[2], body(), metadata={"a": "b"}, part_bytes=2**20,
            progress=lambda n: None))
"""


def writer(root, key):
    process = zygote.popen([sys.executable, "-c", WRITER, str(root), key], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


async def test_a_killed_put_leaves_no_object_and_is_swept_while_a_running_one_is_not(store, root):
    with writer(root, KEY) as killed, writer(root, "systems/mac/living") as living:
        try:
            assert len(incoming_files(root)) == 2
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert [item async for item in store.list("")] == []
            with pytest.raises(NoSuchObject):
                await store.head(KEY)
            assert await store.sweep("systems/pc/") == 0
            assert await store.sweep("systems/mac/") == 1
            assert len(incoming_files(root)) == 1
        finally:
            living.kill()


@pytest.mark.parametrize("is_full", [False, True])
async def test_without_locks_old_incoming_files_are_swept(store, root, monkeypatch, is_full):
    """Some network shares have no locks. A file without a write for 15 minutes belongs to a dead process."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    folder = root / ".akosha" / "incoming" / KEY
    folder.mkdir(parents=True)
    fresh, old = folder / "fresh", folder / "old"
    fresh.write_bytes(b"")
    old.write_bytes(b"")
    long_ago = fresh.stat().st_mtime - 3600
    os.utime(old, (long_ago, long_ago))
    if is_full:
        monkeypatch.setattr(Path, "touch", full)
    assert await store.count_unfinished("systems/") == 1
    assert await store.sweep("systems/") == 1
    assert [path.name for path in incoming_files(root)] == ["fresh"]


async def test_deleting_leaves_no_empty_folders(store, root):
    await put(store, KEY, b"x", {"a": "b"})
    await store.delete([KEY])
    assert list(root.iterdir()) in ([], [root / ".akosha"])


async def test_a_deletion_does_not_remove_the_folder_of_a_concurrent_put(store):
    """A deletion may prune the folder that a put has just created."""
    for _ in range(20):
        await put(store, "systems/mac/a", b"x")
        await asyncio.gather(store.delete(["systems/mac/a"]), put(store, "systems/mac/b", b"y"))
        assert await fetch(store, "systems/mac/b") == b"y"
        await store.delete(["systems/mac/b"])


async def test_a_long_listing_is_complete_and_in_order(store, root):
    names = sorted(f"systems/mac/uploads/{n:04}/m" for n in range(1200))
    for name in names:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    assert [item.key async for item in store.list("systems/mac/")] == names


async def test_create_works_where_the_file_system_has_no_hard_links(store, root, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(incoming.os, "link", link)
    assert await store.create("systems/mac/owner.json", b"first") is Creation.CREATED
    assert await store.create("systems/mac/owner.json", b"second") is Creation.EXISTS
    assert await fetch(store, "systems/mac/owner.json") == b"first"
    assert incoming_files(root) == []


async def test_a_put_does_not_create_a_deleted_root_again(store, root):
    await store.create("systems/mac/owner.json", b"claim")
    shutil.rmtree(root)
    with pytest.raises(StoreError, match="mounted"):
        await put(store, KEY, b"memories")
    assert not root.exists()
    assert await store.create("systems/mac/owner.json", b"claim") is Creation.CREATED, (
        "a create is requested by the user"
    )


async def test_sweeping_one_system_does_not_read_the_metadata_of_others(store, monkeypatch):
    for system in ("mac", "pc"):
        await put(store, f"systems/{system}/uploads/a", b"x", metadata={"sha256": "0"})
    walked, walk = [], os.walk

    def counted(*arguments, **how):
        for folder, folders, names in walk(*arguments, **how):
            walked.append(folder)
            yield folder, folders, names

    monkeypatch.setattr(incoming.os, "walk", counted)
    assert await store.sweep("systems/mac/uploads/") == 0
    assert walked
    assert [folder for folder in walked if "systems/pc" in folder] == []


async def test_sweeping_removes_metadata_without_an_object_unless_its_put_is_running(store):
    orphaned, in_progress, complete = f"{KEY}-orphaned", f"{KEY}-work", f"{KEY}-complete"
    await put(store, complete, b"x", {"sha256": "ab"})
    for key in (orphaned, in_progress, "systems/pc/uploads/x/y"):
        record = store._root / ".akosha" / "metadata" / f"{key}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(b"{}")
    (record.parent / "empty" / "below").mkdir(parents=True)
    file = incoming.Incoming(store._root, in_progress)
    assert await store.count_unfinished("systems/mac/") == 1
    assert await store.sweep("systems/mac/") == 1
    file.discard()
    assert await store.sweep("systems/") == 2
    metadata = store._root / ".akosha" / "metadata"
    assert [p.relative_to(metadata).as_posix() for p in metadata.rglob("*") if p.is_file()] == [f"{complete}.json"]
    assert not (metadata / "systems" / "pc").exists()
    assert dict((await store.head(complete)).metadata) == {"sha256": "ab"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
async def test_puts_work_on_a_file_system_without_fsync(store, monkeypatch, number):
    """Some FUSE mounts and network shares can sync neither files nor folders."""

    def unknown(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", unknown)
    await put(store, KEY, b"x", {"a": "b"})
    assert await fetch(store, KEY) == b"x"


async def test_a_failed_fsync_fails_the_put(store, monkeypatch):
    def failing(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(StoreError):
        await put(store, KEY, b"x")


async def test_an_error_caused_by_missing_locks_names_them(store, monkeypatch):
    def no_locks(*_args, **_how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(incoming, "_create", no_locks)
    with pytest.raises(StoreError, match="without locks") as failure:
        await put(store, KEY, b"x")
    assert "lock" in failure.value.hint


async def test_an_object_opened_after_its_reader_was_cancelled_is_closed(tmp_path, monkeypatch):
    (tmp_path / "object").write_bytes(b"bytes")
    store, opening, proceed = DirectoryStore(tmp_path), threading.Event(), threading.Event()
    open_file, opened = store_module.layout.open_file, []

    def open_later(path):
        opening.set()
        assert proceed.wait(30)
        opened.append(open_file(path))
        return opened[0]

    monkeypatch.setattr(store_module.layout, "open_file", open_later)
    reading = asyncio.create_task(anext(store.get("object")))
    await asyncio.to_thread(opening.wait, 30)
    reading.cancel()
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert [file.closed for file in opened] == [True]
