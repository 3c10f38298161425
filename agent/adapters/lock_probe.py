"""Finds the process that has a database open, by asking the kernel for its lock; takes no lock itself.

DuckDB locks the entire file with `fcntl`; F_GETLK returns a conflicting lock and takes none. Closing a descriptor of
the file drops all locks that this process has on it, so the process must have none: it must never open a database with
DuckDB.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

_LINUX = os.uname().sysname == "Linux"
_LOCK = struct.Struct("@hhqqi0q" if _LINUX else "@qqihh0q")
"""`struct flock`: type, whence, start, length, pid; on macOS and the BSDs, type and whence come last."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that has a file locked; `pid` is 0 if the kernel does not report it (another container)."""

    pid: int
    command: str = ""

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid > 0 else "a process elsewhere"
        return f"{process} ({self.command})" if self.command else process


def holder_of(descriptor: int) -> LockHolder | None:
    """Return the process that has an open file locked, None if no process has. Raises OSError."""
    kind_whence, span_pid = (fcntl.F_WRLCK, os.SEEK_SET), (0, 0, 0)
    request = _LOCK.pack(*kind_whence, *span_pid) if _LINUX else _LOCK.pack(*span_pid, *kind_whence)
    try:
        found = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, request))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK):
            return None  # a file system without locks
        raise
    kind, pid = (found[0], found[4]) if _LINUX else (found[3], found[2])
    return None if kind == fcntl.F_UNLCK else LockHolder(pid, _command(pid))


def find_holder(name: str, dir_fd: int) -> LockHolder | None:
    """Return the process that has a file of a directory (or its link target) locked, else None. Raises OSError."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return holder_of(descriptor)
    finally:
        os.close(descriptor)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no path is kept
            return "".join(char for char in file.read().strip() if char.isprintable())
    except OSError:
        return ""  # no /proc, or the process has ended
