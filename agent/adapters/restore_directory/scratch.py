"""A restore's own folder in the directory: on the same file system, private, used by one restore at a time.

    incoming        the object being downloaded
    raw/NAME        files that are downloaded and verified
    raw/.SHA-256    layers of a file that is not made yet
    folding/        a main file and its sidecars during folding; unusable after a kill
    folded/NAME     main files with their sidecars folded in, flushed to the disk
    journal.json    the files being moved to the directory

A killed restore leaves the folder. The next restore of the same upload continues with its files; a restore of another
upload removes it. Files are opened relative to an open directory without following links, and are on the disk when a
call returns.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.adapters import fs
from agent.adapters.disk_errors import FULL
from agent.domain.errors import RestoreError
from agent.domain.restore_plan import SCRATCH

CHUNK_BYTES = 2**20
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY

_TRIES, _PAUSE_SECONDS = 50, 0.02


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A file's status from `lstat`. Equal statuses mean the same, unmodified file."""

    inode: int
    size: int
    mtime_ns: int
    regular: bool = True

    @classmethod
    def at(cls, name: str, folder: int) -> Self | None:
        """Return the status of a name in an open directory, None if it does not exist. Raises OSError."""
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # a sidecar of a long name
                return None
            raise
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode))


def names_in(folder: int) -> list[str]:
    """Return the names in an open directory, sorted. Raises OSError."""
    return sorted(os.listdir(folder))


def digest_of(name: str, folder: int) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    descriptor = os.open(name, READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(name: str, folder: int) -> None:
    """Flush a file to the disk. Raises OSError."""
    descriptor = os.open(name, READ, dir_fd=folder)
    try:
        fs.sync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(name: str, source: int, new: str, folder: int) -> None:
    """Copy a file to a new name and flush it to the disk. Raises OSError."""
    with (
        os.fdopen(os.open(name, READ, dir_fd=source), "rb") as original,
        fs.create(new, dir_fd=folder) as copy,
    ):
        shutil.copyfileobj(original, copy, CHUNK_BYTES)
        copy.flush()
        fs.sync(copy.fileno())


def remove_all(name: str, folder: int) -> None:
    """Remove a file, or a folder and its contents. Links are removed, not followed. Raises OSError."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    for remaining in reversed(range(_TRIES)):
        try:
            shutil.rmtree(name, dir_fd=folder)
        except OSError as error:
            # The DuckDB process of a restore that was just killed may still create and remove files.
            if not remaining or error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def unusable(where: object, error: OSError) -> RestoreError:
    """Return the RestoreError for an OSError: a file cannot be created or moved."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "make room there" if error.errno in FULL else "set --to to a directory that this user can write to"
    return RestoreError(f"cannot restore to {where}: {reason}", hint=hint, transient=error.errno in FULL)


RAW, FOLDING, FOLDED, INCOMING, JOURNAL = "raw", "folding", "folded", "incoming", "journal.json"
_KEPT = (RAW, FOLDED)


class ScratchInUse(Exception):  # noqa: N818 - a state, not a failure
    """Another restore uses the scratch folder."""


class Scratch:
    """`agent.ports.restore.ScratchDirectory`: a folder that is locked until `close` or the end of the process.

    All calls block.
    """

    def __init__(self, directory: Path, folder: int, upload: str, *, make: bool) -> None:
        """Open the folder; with `make`, create it if needed.

        Raises RestoreError, ScratchInUse, FileNotFoundError, OSError.
        """
        self.upload, self.name = upload, SCRATCH + upload
        self.path = directory / self.name
        self._parent = folder
        self.descriptor = self._open_locked(make=make)

    def tidy(self) -> None:
        """Remove files that a restore cannot continue with, and everything unexpected. Raises OSError."""
        for name in names_in(self.descriptor):
            if name not in (*_KEPT, JOURNAL) or self._is_unexpected(name):
                remove_all(name, self.descriptor)
        for name in _KEPT:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.descriptor)
            inside = os.open(name, FOLDER, dir_fd=self.descriptor)
            try:
                for each in names_in(inside):
                    if not (status := FileStatus.at(each, inside)) or not status.regular:
                        remove_all(each, inside)
            finally:
                os.close(inside)

    def has(self, name: str, size: int, sha256: str) -> bool:
        """Return whether a file is downloaded and matches; remove it if it does not match. Raises OSError."""
        inside = f"{RAW}/{name}"
        if (status := FileStatus.at(inside, self.descriptor)) is None:
            return False
        if status.size == size and digest_of(inside, self.descriptor) == sha256:
            return True
        os.unlink(inside, dir_fd=self.descriptor)
        return False

    def incoming(self) -> Path:
        """Return the path to download the next object to; a file there is removed. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(INCOMING, dir_fd=self.descriptor)
        return self.path / INCOMING

    def keep(self, name: str) -> None:
        """Move the verified download from `incoming` to its name under `raw`. Raises OSError."""
        self.move(INCOMING, f"{RAW}/{name}")

    def kept(self, name: str) -> Path:
        """Return the path of a file under `raw`."""
        return self.path / RAW / name

    def drop(self, names: Iterable[str]) -> None:
        """Remove files under `raw`. Raises OSError."""
        for name in set(names):
            os.unlink(f"{RAW}/{name}", dir_fd=self.descriptor)

    def begin_folding(self, names: Iterable[str]) -> Path:
        """Move a main file and its sidecars to an empty folder for folding; return the folder. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            remove_all(FOLDING, self.descriptor)
        os.mkdir(FOLDING, 0o700, dir_fd=self.descriptor)
        for name in names:
            self.move(f"{RAW}/{name}", f"{FOLDING}/{name}")
        return self.path / FOLDING

    def end_folding(self, main: str) -> None:
        """Move the main file, which now contains its sidecars, to `folded`. Raises OSError."""
        sync_file(f"{FOLDING}/{main}", self.descriptor)
        self.move(f"{FOLDING}/{main}", f"{FOLDED}/{main}")
        fs.sync(self.descriptor)
        remove_all(FOLDING, self.descriptor)

    def undo_folding(self, names: Iterable[str]) -> None:
        """Move the files back to `raw`. They may have changed, which `has` detects. Raises OSError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.move(f"{FOLDING}/{name}", f"{RAW}/{name}")
        remove_all(FOLDING, self.descriptor)

    def folded(self, main: str) -> int | None:
        """Return the size of a folded file, None if it does not exist. Raises OSError."""
        status = FileStatus.at(f"{FOLDED}/{main}", self.descriptor)
        return status.size if status else None

    def file(self, main: str) -> Path:
        """Return the path of a main file: the folded one, else the downloaded one. Raises OSError."""
        return self.path / (RAW if self.folded(main) is None else FOLDED) / main

    def move(self, name: str, to: str) -> None:
        """Rename within the folder. Raises OSError."""
        os.rename(name, to, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def remove(self) -> None:
        """Remove the folder; the journal last, so that the next restore sees that this one is complete.

        Raises OSError.
        """
        for name in sorted(names_in(self.descriptor), key=lambda name: name == JOURNAL):
            remove_all(name, self.descriptor)
        os.rmdir(self.name, dir_fd=self._parent)

    def close(self) -> None:
        """Release the lock."""
        os.close(self.descriptor)

    def _open_locked(self, *, make: bool) -> int:
        while True:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.name, 0o700, dir_fd=self._parent)
            try:
                descriptor = os.open(self.name, FOLDER, dir_fd=self._parent)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise RestoreError(f"{self.path} is not a usable directory", hint="remove it") from error
            try:
                self._check(os.fstat(descriptor))
                if not fs.try_lock(descriptor):
                    raise ScratchInUse(str(self.path))
                # Another restore may have removed the folder between open and lock, and the name may be a new folder.
                current = FileStatus.at(self.name, self._parent)
                if current is not None and current.inode == os.fstat(descriptor).st_ino:
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if not make:
                raise FileNotFoundError(self.name)

    def _check(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise RestoreError(
                f"{self.path} is accessible to other users, or belongs to one",
                hint="remove it, or restore to another directory",
            )

    def _is_unexpected(self, name: str) -> bool:
        status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        folder = stat.S_ISDIR(status.st_mode)
        return not (folder if name in _KEPT else stat.S_ISREG(status.st_mode))
