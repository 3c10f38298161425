"""A put in progress: a locked file in the hidden directory, which one rename turns into the object."""

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.adapters.directory_store.layout import (
    HIDDEN,
    encode_record,
    incoming_folder,
    object_path,
    open_file,
    record_bytes,
    record_path,
)
from agent.domain.errors import StoreError
from agent.ports import Progress
from agent.ports.objects import FILE_TAG

FLUSH_BYTES = 32 * 2**20
"""Call fsync after this many bytes, so that the last fsync does not have to flush the complete file."""

READ_BYTES = 2**20

ABANDONED_SECONDS = 900
"""On a file system without locks, an unfinished put counts as abandoned after this time without a write."""

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_ATTEMPTS = 5
"""A deletion may prune a directory at any time, so creating a file in it is tried again."""


class Incoming:
    """A put in progress. All methods block and raise OSError; `discard` may be called at any time.

    `device` is that of the root, None if it has not been seen before. If the root is missing or on another device, its
    disk has been unmounted: then nothing is written.
    """

    def __init__(self, root: Path, key: str, *, device: int | None = None) -> None:
        self._root = root
        self._key = key
        self._target = object_path(root, key)
        self._lock = threading.Lock()
        self._unflushed = 0
        self.size = 0
        self._digest = hashlib.sha256()
        if device is None and not root.is_dir():
            # The root is created, its parent is not: a missing mount point must not be replaced by a directory.
            root.mkdir(mode=0o700, exist_ok=True)
        self._device = root.stat().st_dev if device is None else device
        self._check_mounted()
        self._path, self._file = _create(root, incoming_folder(root, key), self._target.name)
        self._discarded = False

    def write(self, pieces: list[bytes]) -> None:
        with self._lock:
            for piece in pieces:
                self._file.write(piece)
                self._digest.update(piece)
                self.size += len(piece)
                self._unflushed += len(piece)
            if self._unflushed >= FLUSH_BYTES:
                self._sync()

    def copy_from(self, source: Path, progress: Progress) -> None:
        """Copy the source's bytes, as a reflink if the file system supports it.

        `progress` is called from this thread. The copy is read for its digest, which shows whether the source has been
        damaged.
        """
        with self._lock, open_file(source) as origin:
            self.size = _copy_range(origin, self._file, progress)
            self._file.flush()
            self._file.seek(0)
            while piece := self._file.read(READ_BYTES):
                self._digest.update(piece)
                progress(0)

    @property
    def tag(self) -> str:
        """The tag of the bytes written so far, as `StoredObject.etag`."""
        return FILE_TAG + self._digest.hexdigest()

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Turn the file into the object, durably. Raises StoreError if the file does not have all written bytes."""
        with self._lock:
            if self._discarded:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
            self._check_mounted()
            self._sync()
            written = os.fstat(self._file.fileno()).st_size
            if written != self.size:
                raise StoreError(
                    f"{self._key!r} in {self._root} is damaged: it has {written} of {self.size} bytes",
                    hint=f"check the disk or share of {self._root}",
                    transient=True,
                )
            record = encode_record(self.size, metadata)
            record_file = record_path(self._root, self._key)
            if _is_file(self._target) and _read_if_exists(record_file) != record:
                record_file.unlink(missing_ok=True)
                if record_file.parent.is_dir():
                    fs.sync_directory(record_file.parent)
                _move(self._root, self._path, self._target)
                self._write_record(record_file, record)
            else:
                self._write_record(record_file, record)
                _move(self._root, self._path, self._target)
            self._close()

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        with self._lock:
            self._discarded = True
            self._close()

    def _write_record(self, record_file: Path, record: bytes) -> None:
        if _read_if_exists(record_file) == record:
            return
        temporary, file = _create(self._root, incoming_folder(self._root, self._key), record_file.name)
        try:
            with file:
                file.write(record)
                file.flush()
                fs.sync(file.fileno())
                _move(self._root, temporary, record_file)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_mounted(self) -> None:
        """Raise StoreError if the root is on another device than before, FileNotFoundError if it is missing."""
        if self._root.stat().st_dev != self._device:
            raise StoreError(
                f"cannot write {self._key!r} in {self._root}: another disk is there than before",
                hint=f"is the disk or share of {self._root} mounted?",
                transient=True,
            )

    def _sync(self) -> None:
        self._file.flush()
        fs.sync(self._file.fileno())
        self._unflushed = 0

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        prune(self._path.parent, self._root / HIDDEN)


def create(root: Path, key: str, data: bytes, *, replace: bool) -> bool:
    """Create a small object, durably; return False if it exists. `replace` overwrites it. Blocks. Raises OSError.

    A hard link makes the object appear with all its bytes. On a file system without hard links (FAT) the file is
    created under its name and then written: a crash in between leaves a damaged object.
    """
    target = object_path(root, key)
    root.mkdir(mode=0o700, exist_ok=True)
    if target.exists() and not replace:
        return False
    temporary, file = _create(root, incoming_folder(root, key), target.name)
    try:
        with file:
            file.write(data)
            file.flush()
            fs.sync(file.fileno())
            if replace:
                record_path(root, key).unlink(missing_ok=True)
                _move(root, temporary, target)
                return True
            return _link(root, temporary, target, data)
    finally:
        temporary.unlink(missing_ok=True)
        prune(temporary.parent, root / HIDDEN)


def _link(root: Path, temporary: Path, target: Path, data: bytes) -> bool:
    for attempt in range(_ATTEMPTS):
        _make_folders(root, target.parent)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except FileNotFoundError:  # a deletion has just pruned the directory
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _write_new(target, data)
        else:
            fs.sync_directory(target.parent)
            return True
    raise AssertionError


def _write_new(target: Path, data: bytes) -> bool:
    try:
        fs.write_new(target, data)
    except FileExistsError:
        return False
    fs.sync_directory(target.parent)
    return True


def sweep(root: Path, prefix: str) -> int:
    """Remove what killed puts of keys under `prefix` left; return the number of files removed.

    These are incoming files that no process writes, and records whose object never appeared. A put locks its file, and
    the lock ends with its process, on this machine or on another one over NFS. Empty directories are removed, too.
    """
    top = root / HIDDEN / "incoming"
    removed = 0
    for folder, names in _below(top, prefix):
        key = Path(folder).relative_to(top).as_posix()
        if key.startswith(prefix):
            removed += sum(_remove_if_abandoned(Path(folder) / name) for name in names)
            prune(Path(folder), root / HIDDEN)
    for key, record in [*_orphans(root, prefix)]:
        # The order matters: an object appears while its put still holds the lock.
        if not _has_active_put(root, key) and not object_path(root, key).exists():
            record.unlink(missing_ok=True)
            removed += 1
    _prune_empty(root / HIDDEN / "metadata", prefix)
    return removed


def count_unfinished(root: Path, prefix: str) -> int:
    """Return how many files `sweep` would remove. Removes nothing."""
    top = root / HIDDEN / "incoming"
    orphans = sum(not _has_active_put(root, key) for key, _ in _orphans(root, prefix))
    return orphans + sum(
        _is_abandoned(Path(folder) / name)
        for folder, names in _below(top, prefix)
        if Path(folder).relative_to(top).as_posix().startswith(prefix)
        for name in names
    )


def _orphans(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield the key and the record of each record under `prefix` without an object."""
    top = root / HIDDEN / "metadata"
    for folder, names in _below(top, prefix):
        for name in names:
            key = (Path(folder) / name).relative_to(top).as_posix().removesuffix(".json")
            if name.endswith(".json") and key.startswith(prefix) and not (root / key).exists():
                yield key, Path(folder) / name


def _has_active_put(root: Path, key: str) -> bool:
    """Return whether a put of this key may be in progress."""
    try:
        return not all(_is_abandoned(path) for path in incoming_folder(root, key).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _prune_empty(top: Path, prefix: str) -> None:
    for folder, _ in _below(top, prefix, topdown=False):
        if Path(folder).relative_to(top).as_posix().startswith(prefix.rstrip("/")):
            prune(Path(folder), top.parent)


def _below(top: Path, prefix: str, *, topdown: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield directories and their file names, without those that cannot contain keys under `prefix`."""
    for folder, _, names in os.walk(top / prefix.rpartition("/")[0], topdown=topdown):
        yield folder, names


def prune(folder: Path, stop: Path) -> None:
    """Remove `folder` and its parents below `stop`, as long as they are empty."""
    while folder != stop and stop in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _create(root: Path, folder: Path, name: str) -> tuple[Path, BinaryIO]:
    path = folder / f"{secrets.token_hex(8)}-{os.getpid()}"
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # another put has just pruned the directory
            _make_folders(root, folder, durable=False)
            file = fs.create(path)
            with contextlib.suppress(OSError):  # without locks on this file system, `sweep` uses the file's age
                fs.try_lock(file.fileno())
            return path, file
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _remove_if_abandoned(path: Path) -> bool:
    try:
        with open_file(path) as file:
            try:
                if not fs.try_lock(file.fileno()):
                    return False
            except OSError:
                if not _is_older_than(path, ABANDONED_SECONDS):
                    return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def _is_abandoned(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return fs.try_lock(file.fileno(), shared=True)
    except OSError:  # removed, or the file system has no locks: unknown
        return False


def _is_older_than(path: Path, seconds: float) -> bool:
    """Compare the file's mtime with a new file's: the clock of the file system may be another machine's."""
    probe = path.with_name(f"{path.name}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > seconds
    finally:
        probe.unlink(missing_ok=True)


def _make_folders(root: Path, folder: Path, *, durable: bool = True) -> None:
    """Create the missing directories below `root`. All are private: with `parents=True`, only the last would be."""
    missing = []
    while folder != root and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
        if durable:
            fs.sync_directory(new.parent)


def _move(root: Path, source: Path, target: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _make_folders(root, target.parent)
            source.replace(target)
            fs.sync_directory(target.parent)
        except FileNotFoundError:  # a deletion has just pruned the directory, or the source was removed
            if attempt == _ATTEMPTS - 1 or not source.exists():
                raise
        else:
            return


def _read_if_exists(path: Path) -> bytes | None:
    try:
        return record_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _copy_range(origin: BinaryIO, target: BinaryIO, progress: Progress) -> int:
    copied = 0
    step = 2**23
    if hasattr(os, "copy_file_range"):
        try:
            while count := os.copy_file_range(origin.fileno(), target.fileno(), step):
                copied += count
                progress(count)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
                raise
    origin.seek(copied)
    target.seek(copied)
    while piece := origin.read(2**20):
        target.write(piece)
        copied += len(piece)
        progress(len(piece))
    return copied
