"""Durable and atomic writes, private files, and locks between processes. Every call blocks.

Imports little, and only from the standard library: short-lived processes load this module.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600
DRAFT_SUFFIX = ".draft"
"""The suffix of a draft: a file that is written under a temporary name, which begins with a dot."""

_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OTHERS = 0o077


def sync(descriptor: int) -> None:
    """Flush a file's bytes, or a directory's names, to the disk. Raises OSError.

    A file system without fsync (some network and FUSE file systems) is not an error: a backup there is as durable as
    the file system makes it.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EBADF:
            os.fstat(descriptor)  # raises if the descriptor is closed; else the file system cannot sync directories
        elif error.errno not in _NO_FSYNC:
            raise


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk. Raises OSError."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def create(path: str | Path, *, dir_fd: int | None = None) -> BinaryIO:
    """Create a private file, open for reading and writing. Raises FileExistsError, OSError."""
    return os.fdopen(os.open(path, _CREATE, PRIVATE, dir_fd=dir_fd), "w+b")


def write_new(
    path: str | Path,
    data: bytes,
    *,
    mode: int | None = None,
    like: os.stat_result | None = None,
    dir_fd: int | None = None,
) -> None:
    """Create a file with these bytes. Raises FileExistsError, OSError.

    The bytes are flushed to the disk; the directory entry is not. `mode` ignores the umask. `like` is the status of a
    file whose mode, and owner if permitted, are copied. Without either, the file is private. If another error occurs,
    the file is removed.
    """
    file = create(path, dir_fd=dir_fd)
    try:
        with file:
            if like is not None:
                if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    with suppress(PermissionError):
                        os.fchown(file.fileno(), like.st_uid, like.st_gid)
                mode = stat.S_IMODE(like.st_mode)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            sync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path, dir_fd=dir_fd)
        raise


def _draft_of(path: Path, *, random: bool = True) -> Path:
    """Return the path under which a file is written before it gets its name; it is in the same directory."""
    middle = f".{secrets.token_hex(4)}" if random else ""
    return path.with_name(f".{path.name}{middle}{DRAFT_SUFFIX}")


def write_atomically(
    path: Path,
    data: bytes,
    *,
    mode: int = PRIVATE,
    like: os.stat_result | None = None,
    check: Callable[[], None] = lambda: None,
    sole_writer: bool = False,
) -> None:
    """Create or replace a file; after a crash it has all the old or all the new bytes. Raises OSError.

    `like` is as in `write_new`. `check` is called just before the rename and may raise to prevent it. `sole_writer`
    means that the caller holds a lock: an existing draft was left by a killed process and is replaced. After an error,
    the old file is unchanged and the draft is removed.
    """
    draft = _draft_of(path, random=not sole_writer)
    if sole_writer:
        draft.unlink(missing_ok=True)
    write_new(draft, data, mode=mode, like=like)
    try:
        check()
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def create_atomically(path: Path, data: bytes) -> bool:
    """Create a file with all its bytes; return False if it exists. Raises OSError.

    If several processes call this at the same time, one succeeds. The file system must support hard links.
    """
    draft = _draft_of(path)
    write_new(draft, data)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def open_regular(path: Path, *, writable: bool = False) -> int:
    """Open a regular file for reading. Does not follow a link, or wait for the writer of a pipe.

    `writable`: also for writing, which an exclusive lock needs over NFS. Raises ValueError for any other kind of file,
    FileNotFoundError and other OSErrors.
    """
    try:
        access = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise ValueError("not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def read_own(path: Path, max_bytes: int, *, private: bool = False) -> bytes:
    """Return the bytes of a regular file that this user owns. Does not follow links or block on pipes.

    Raises ValueError if the path is a link or not a regular file, if another user owns the file, if it is larger than
    `max_bytes`, or if `private` is set and others can open it. Raises FileNotFoundError and other OSErrors.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise ValueError(f"it belongs to user {status.st_uid}")
        if private and status.st_mode & _OTHERS:
            raise ValueError(f"others can open it (mode {stat.S_IMODE(status.st_mode):04o})")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return data


def open_lock_file(path: Path) -> int:
    """Open a lock file; create it if it does not exist. Close-on-exec, so child processes do not keep the lock.

    Raises OSError.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file or directory; wait until it is free. Closing the descriptor releases it. Raises OSError."""
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or directory; return False at once if another process holds a conflicting lock.

    Raises OSError if the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a lock file within the block; wait until it is free. Raises OSError."""
    descriptor = open_lock_file(path)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)
