"""A put in progress: a locked file in the hidden directory, which one rename turns into the object."""

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.adapters.directory_store import sharing
from agent.adapters.directory_store.layout import (
    HIDDEN,
    encode_record,
    incoming_folder,
    object_path,
    open_file,
    physical_copy,
    record_bytes,
    record_path,
)
from agent.adapters.directory_store.sharing import Check, Checks, copy_range
from agent.domain.errors import CopyUnsupported, StoreError
from agent.ports import Progress, is_changed
from agent.ports.objects import FILE_TAG

FLUSH_BYTES = 32 * 2**20
"""Call fsync after this many bytes, so that the last fsync does not have to flush the complete file."""

READ_BYTES = 2**20

LINK_SUFFIX = ".link"
"""Suffix of a hard link that a put makes beside its file."""

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_ATTEMPTS = 5
"""A deletion may prune a directory at any time, so creating a file in it is tried again."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """The open object whose blocks a put shares, its status, and the check of its bytes.

    `shares` names the physical copy; it is empty for a hard link.
    """

    origin: BinaryIO
    status: os.stat_result
    check: Check
    shares: str


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
        self._shared: _Shared | None = None
        if device is None and not root.is_dir():
            # The root is created, its parent is not: a missing mount point must not be replaced by a directory.
            root.mkdir(mode=0o700, exist_ok=True)
        self._device = root.stat().st_dev if device is None else device
        self._check_mounted()
        self._path, self._file = _create(root, incoming_folder(root, key), self._target.name)
        self._link = self._path.with_suffix(LINK_SUFFIX)
        self._checks = Checks(root)
        self._discarded = False

    def write(self, pieces: list[bytes]) -> None:
        with self._lock:
            for piece in pieces:
                self._file.write(piece)
                self._digest.update(piece)
                self.size += len(piece)
            self._written(sum(map(len, pieces)))

    def copy_from(self, source: Path, progress: Progress) -> None:
        """Copy the source's bytes.

        `progress` is called from this thread. The copy is read for its digest, which shows whether the source has been
        damaged.
        """

        def copied(count: int) -> None:
            self._written(count)
            progress(count)

        with self._lock, open_file(source) as origin:
            self.size = copy_range(origin, self._file, copied)
            self._file.flush()
            self._file.seek(0)
            while piece := self._file.read(READ_BYTES):
                self._digest.update(piece)
                progress(0)

    def share(self, key: str, expected_tag: str, progress: Progress) -> bool:
        """Share the blocks of the object `key`, as a reflink or hard link, instead of a copy of its bytes.

        Returns False if the file system can do neither, if the object was just deleted, or if its bytes are not those
        of `expected_tag`; then `copy_from` may follow. The object is read if it has not been checked recently.
        `progress` is called from this thread.
        """
        source = object_path(self._root, key)
        with self._lock, contextlib.ExitStack() as cleanup:
            try:
                origin = cleanup.enter_context(open_file(source))
            except FileNotFoundError:
                return False
            before = os.fstat(origin.fileno())
            check = self._checks.find(before)
            shares = ""
            if sharing.reflink(origin, self._file):
                cleanup.callback(self._file.truncate, 0)
                shares = physical_copy(self._root, key)
            elif sharing.hard_link(origin, source, self._link):
                cleanup.callback(self._link.unlink, missing_ok=True)
            else:
                return False
            check = check or self._checks.read(origin, progress)
            after = os.fstat(origin.fileno())
            if is_changed(expected_tag, check.tag) or not sharing.has_same_bytes(before, after):
                return False
            self.size = after.st_size
            self._shared = _Shared(origin, after, check, shares)
            cleanup.pop_all()
            return True

    @property
    def tag(self) -> str:
        """The tag of the object's bytes so far, as `StoredObject.etag`."""
        return self._shared.check.tag if self._shared else FILE_TAG + self._digest.hexdigest()

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Turn the file into the object, durably.

        Raises StoreError if the file does not have all written bytes, CopyUnsupported if what it shares has changed.
        """
        with self._lock:
            if self._discarded:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
            self._check_mounted()
            self._sync()
            shared, file, path = self._shared, self._file, self._path
            if shared and not shared.shares:
                file, path = shared.origin, self._link
                fs.sync(file.fileno())
            if shared and not sharing.has_same_bytes(shared.status, os.fstat(shared.origin.fileno())):
                raise CopyUnsupported(f"the source of {self._key!r} in {self._root} changed while it was copied")
            written = os.fstat(file.fileno()).st_size
            if written != self.size:
                raise StoreError(
                    f"{self._key!r} in {self._root} is damaged: it has {written} of {self.size} bytes",
                    hint=f"check the disk or share of {self._root}",
                    transient=True,
                )
            record = encode_record(self.size, metadata, shared.shares if shared else "")
            record_file = record_path(self._root, self._key)
            if _is_file(self._target) and _read_if_exists(record_file) != record:
                record_file.unlink(missing_ok=True)
                if record_file.parent.is_dir():
                    fs.sync_directory(record_file.parent)
                _move(self._root, path, self._target)
                self._write_record(record_file, record)
            else:
                self._write_record(record_file, record)
                _move(self._root, path, self._target)
            if shared:
                for checked in {file, shared.origin}:
                    self._checks.keep(os.fstat(checked.fileno()), shared.check)
            self._remove()
            self._close()

    def discard(self) -> None:
        """Remove the file."""
        self._remove()
        with self._lock:
            self._remove()
            self._discarded = True
            self._close()

    def _remove(self) -> None:
        for path in (self._path, self._link):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

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

    def _written(self, count: int) -> None:
        self._unflushed += count
        if self._unflushed >= FLUSH_BYTES:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        fs.sync(self._file.fileno())
        self._unflushed = 0

    def _close(self) -> None:
        for file in (self._file, self._shared.origin if self._shared else self._file):
            with contextlib.suppress(OSError):
                file.close()
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
    except OSError:  # missing, or in an unreadable sector: it is written again
        return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
