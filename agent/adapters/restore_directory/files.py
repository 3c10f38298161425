"""Files below an open directory: looked at without following links, on the disk when a call returns."""

import errno
import hashlib
import os
import shutil
import stat
import time
from dataclasses import dataclass
from typing import Self

from agent.adapters import fs
from agent.domain.errors import RestoreError

CHUNK_BYTES = 2**20
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_TRIES, _PAUSE_SECONDS = 50, 0.02


@dataclass(frozen=True, slots=True)
class Look:
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
    look = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(look.st_mode):
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
