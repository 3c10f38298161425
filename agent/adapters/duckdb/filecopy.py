"""One file, copied through one descriptor: a shared-blocks clone where the file system can, else bytes."""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import threading
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Self

from agent.adapters.duckdb.source import Found
from agent.domain.errors import SnapshotError, StagingFull

CHUNK_BYTES = 2**20
STATE_DIR_HINT = "free some space there, or let akosha_agent_state_dir name a directory on a bigger disk"

_FICLONE = 0x40049409
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Moved(Exception):  # noqa: N818 - not an error: the writer did its work
    """The originals changed under the copy."""


class FileCopy:
    """An original and its copy, both open: close it. Memory is two chunks, whatever the file's size."""

    def __init__(self, found: Found, folder: Path, *, halt: threading.Event) -> None:
        """Open both. Raises SnapshotError, and Moved where the name leads to another file by now."""
        self.found = found
        self.folder = folder
        self.halt = halt
        self.size = 0
        self._sha256 = ""
        try:
            self.original = found.open()
        except OSError as error:
            raise Moved(f"{found.name} was moved") from error
        try:
            status = os.fstat(self.original)
            if (status.st_dev, status.st_ino) != found.identity[1:]:
                raise Moved(f"{found.name} was replaced")
            try:
                self.copy = os.open(folder / found.name, _CREATE, 0o600)
            except OSError as error:
                raise staging_error(error, found.name, folder) from error
        except BaseException:
            os.close(self.original)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.original)
        os.close(self.copy)

    def run(self, hashing: Executor | None) -> None:
        """Copy as many bytes as the original has now; with `hashing`, work out the SHA-256 meanwhile.

        Raises Moved where it became shorter, SnapshotError, OSError where the original cannot be read.
        """
        if _clone(self.original, self.copy):
            self.size = os.fstat(self.copy).st_size
            return
        self.size = os.fstat(self.original).st_size
        digest = hashlib.sha256()
        buffers = [memoryview(bytearray(min(CHUNK_BYTES, max(self.size, 1)))) for _ in range(2)]
        hashed: list[Future[None] | None] = [None, None]
        done = turn = 0
        while done < self.size:
            self._go_on()
            if (pending := hashed[turn]) is not None:
                pending.result()
            count = os.readv(self.original, [buffers[turn][: self.size - done]])
            if count == 0:
                raise Moved(f"{self.found.name} became shorter")
            chunk = buffers[turn][:count]
            if hashing is not None:
                hashed[turn] = hashing.submit(digest.update, chunk)
            self._write(chunk)
            done += count
            turn = 1 - turn
        for pending in hashed:
            if pending is not None:
                pending.result()
        if hashing is not None:
            self._sha256 = digest.hexdigest()

    def check_prefix(self) -> None:
        """Raise Moved unless the original still begins with exactly the bytes of the copy."""
        for at in range(0, self.size, CHUNK_BYTES):
            self._go_on()
            count = min(CHUNK_BYTES, self.size - at)
            if os.pread(self.original, count, at) != os.pread(self.copy, count, at):
                raise Moved(f"{self.found.name} was written anew")

    def sha256(self) -> str:
        """Return the SHA-256 of the copy; it is read where it was not hashed on the way."""
        if not self._sha256:
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(CHUNK_BYTES))
            os.lseek(self.copy, 0, os.SEEK_SET)
            while count := os.readv(self.copy, [buffer]):
                self._go_on()
                digest.update(buffer[:count])
            self._sha256 = digest.hexdigest()
        return self._sha256

    def _write(self, chunk: memoryview) -> None:
        written = 0
        try:
            while written < len(chunk):
                written += os.write(self.copy, chunk[written:])
        except OSError as error:
            raise staging_error(error, self.found.name, self.folder, needed=self.size) from error

    def _go_on(self) -> None:
        if self.halt.is_set():
            raise SnapshotError(f"copying {self.found.name} was cancelled", transient=True)


def staging_error(error: OSError, name: str, folder: Path, *, needed: int = 0) -> SnapshotError:
    """Return what it means that the copy could not be written."""
    where = folder.parent
    if error.errno in _FULL:
        return staging_full(name, where, needed=needed, why=f" ({error.strerror})")
    return SnapshotError(
        f"cannot copy {name} to {where}: {error.strerror}",
        hint="let akosha_agent_state_dir name a directory that you may write to",
    )


def staging_full(name: str, where: Path, *, needed: int, why: str = "") -> StagingFull:
    """Return the error that says how much is needed, how much is there, and where. Transient: space may be freed."""
    try:
        free = f"{shutil.disk_usage(where).free:,} bytes"
    except OSError as error:
        free = f"nobody knows how much ({error.strerror})"
    return StagingFull(
        f"no room to copy {name} to {where}{why}: {needed:,} bytes needed, {free} free",
        hint=STATE_DIR_HINT,
        transient=True,
    )


def _clone(original: int, copy: int) -> bool:
    """Share the blocks where the file system can (btrfs, XFS, bcachefs): milliseconds for any size."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False  # another file system, or one that cannot: bytes it is
    return True
