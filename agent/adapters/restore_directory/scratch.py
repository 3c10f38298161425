"""A restore's own folder in the directory: on the same file system, closed to others, one restore at a time.

    incoming        the object that is on its way
    raw/NAME        files that have come and were checked
    folding/        a main file and its sidecars while they become one: what a killed restore left there is worthless
    folded/NAME     main files that hold it all, on the disk
    journal.json    the files being moved to the directory

A killed restore leaves it; the next one of the same upload goes on with what is in it, any other removes it. Files are
opened below an open directory, without following links, and are on the disk when a call returns.
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
from agent.domain.errors import RestoreError
from agent.domain.restore_plan import SCRATCH

CHUNK_BYTES = 2**20
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_TRIES, _PAUSE_SECONDS = 50, 0.02


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A file as `lstat` sees it: equal as long as it is the same one, and nobody wrote to it."""

    inode: int
    size: int
    mtime_ns: int
    regular: bool = True

    @classmethod
    def at(cls, name: str, folder: int) -> Self | None:
        """Return how it looks, None where nothing has that name. Raises OSError."""
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode))


def names_in(folder: int) -> list[str]:
    """Return the names in an open directory, in order. Raises OSError."""
    return sorted(os.listdir(folder))


def digest_of(name: str, folder: int) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    descriptor = os.open(name, READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(name: str, folder: int) -> None:
    """Have a file on the disk. Raises OSError."""
    descriptor = os.open(name, READ, dir_fd=folder)
    try:
        fs.sync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(name: str, source: int, new: str, folder: int) -> None:
    """Copy a file to a new name, on the disk when it returns. Raises OSError."""
    with (
        os.fdopen(os.open(name, READ, dir_fd=source), "rb") as original,
        fs.create(new, dir_fd=folder) as copy,
    ):
        shutil.copyfileobj(original, copy, CHUNK_BYTES)
        copy.flush()
        fs.sync(copy.fileno())


def remove_all(name: str, folder: int) -> None:
    """Remove a folder with all that is in it, or a file; links in it are removed, not followed. Raises OSError."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    for left in reversed(range(_TRIES)):
        try:
            shutil.rmtree(name, dir_fd=folder)
        except OSError as error:
            # The engine of a restore that was killed just now may still be ending in there.
            if not left or error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def unusable(where: object, error: OSError) -> RestoreError:
    """Return what it means that a file cannot be made or moved."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "make room there" if error.errno in FULL else "let --to name a directory that you may write to"
    return RestoreError(f"{where} cannot be restored to: {reason}", hint=hint, transient=error.errno in FULL)


RAW, FOLDING, FOLDED, INCOMING, JOURNAL = "raw", "folding", "folded", "incoming", "journal.json"
_KEPT = (RAW, FOLDED)


class ScratchInUse(Exception):  # noqa: N818 - the state of the world
    """Another restore works in it."""


class Scratch:
    """The folder, held until `close`: a lock that goes with the process. Its calls block."""

    def __init__(self, directory: Path, folder: int, upload: str, *, make: bool) -> None:
        """Open it, `make` it where there is none. Raises RestoreError, Busy, FileNotFoundError, OSError."""
        self.upload, self.name = upload, SCRATCH + upload
        self.path = directory / self.name
        self._parent = folder
        self.descriptor = self._held(make=make)

    def tidy(self) -> None:
        """Remove what cannot be gone on with, and whatever is no file or folder of ours. Raises OSError."""
        for name in names_in(self.descriptor):
            if name not in (*_KEPT, JOURNAL) or self._strange(name):
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
        """Say whether a file has come and is what it should be; one that is not is removed. Raises OSError."""
        inside = f"{RAW}/{name}"
        if (status := FileStatus.at(inside, self.descriptor)) is None:
            return False
        if status.size == size and digest_of(inside, self.descriptor) == sha256:
            return True
        os.unlink(inside, dir_fd=self.descriptor)
        return False

    def incoming(self) -> Path:
        """Return where the next object goes; nothing is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(INCOMING, dir_fd=self.descriptor)
        return self.path / INCOMING

    def keep(self, name: str) -> None:
        """What has come in is this file, checked. Raises OSError."""
        self.move(INCOMING, f"{RAW}/{name}")

    def begin_folding(self, names: Iterable[str]) -> Path:
        """Bring files together to be folded; return the folder. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            remove_all(FOLDING, self.descriptor)
        os.mkdir(FOLDING, 0o700, dir_fd=self.descriptor)
        for name in names:
            self.move(f"{RAW}/{name}", f"{FOLDING}/{name}")
        return self.path / FOLDING

    def end_folding(self, main: str) -> None:
        """The main file holds it all now. Raises OSError."""
        sync_file(f"{FOLDING}/{main}", self.descriptor)
        self.move(f"{FOLDING}/{main}", f"{FOLDED}/{main}")
        fs.sync(self.descriptor)
        remove_all(FOLDING, self.descriptor)

    def undo_folding(self, names: Iterable[str]) -> None:
        """Take the files apart again; `has` says whether they are as they were. Raises OSError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.move(f"{FOLDING}/{name}", f"{RAW}/{name}")
        remove_all(FOLDING, self.descriptor)

    def folded(self, main: str) -> int | None:
        """Return the size of a folded file, None where it is not there. Raises OSError."""
        status = FileStatus.at(f"{FOLDED}/{main}", self.descriptor)
        return status.size if status else None

    def file(self, main: str) -> Path:
        """Return where a main file is: the folded one, else the one that has come. Raises OSError."""
        return self.path / (RAW if self.folded(main) is None else FOLDED) / main

    def move(self, name: str, to: str) -> None:
        """Rename within the folder. Raises OSError."""
        os.rename(name, to, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def remove(self) -> None:
        """Remove it; the journal last, so that what is done is known to be done. Raises OSError."""
        for name in sorted(names_in(self.descriptor), key=lambda name: name == JOURNAL):
            remove_all(name, self.descriptor)
        os.rmdir(self.name, dir_fd=self._parent)

    def close(self) -> None:
        """Let others have it."""
        os.close(self.descriptor)

    def _held(self, *, make: bool) -> int:
        while True:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.name, 0o700, dir_fd=self._parent)
            try:
                descriptor = os.open(self.name, FOLDER, dir_fd=self._parent)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise RestoreError(f"{self.path} is no folder of ours", hint="remove it") from error
            try:
                self._check(os.fstat(descriptor))
                if not fs.try_lock(descriptor):
                    raise ScratchInUse(str(self.path))
                # One who removed it meanwhile held the folder that we had opened, not the one that has its name now.
                now = FileStatus.at(self.name, self._parent)
                if now is not None and now.inode == os.fstat(descriptor).st_ino:
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if not make:
                raise FileNotFoundError(self.name)

    def _check(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise RestoreError(f"{self.path} is open to others, or theirs", hint="remove it, or restore elsewhere")

    def _strange(self, name: str) -> bool:
        status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        folder = stat.S_ISDIR(status.st_mode)
        return not (folder if name in _KEPT else stat.S_ISREG(status.st_mode))
