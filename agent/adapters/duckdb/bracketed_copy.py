"""The header-bracketed copy: right under a writer that commits and checkpoints all the time, without any lock.

DuckDB never overwrites a data block that the active header refers to; a checkpoint is complete when the other header
becomes the active one, and only then may old blocks be used again. So the main file is copied between two readings of
its header bytes: equal, no checkpoint was completed in between, and all blocks of the copy are of that header's state.
The exception is a block of metadata (DuckDB 1.5 and 2.0): a checkpoint adds to it in place, before the header. What was
in it stays, but a copy made during that write may be torn. Its checksum shows it, so verification finds it.
The sidecars are read after the main file and must belong to the same header: none appears or vanishes, each is still
the same file and still begins with exactly the bytes copied. What was committed before the copying began is in main or
sidecars by then; a commit that is half written at the end of a sidecar is ignored when it is replayed. If anything
moved: again.

Each file is copied through one descriptor: a shared-blocks clone where the file system can, else bytes. Everything here
blocks; it runs in a thread. `halt` ends it at the next chunk.
"""

import errno
import fcntl
import hashlib
import os
import random
import shutil
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from agent.adapters.duckdb.source import HEADER_BYTES, FoundFile, Header, Source
from agent.domain.databases import Fingerprint
from agent.domain.errors import SnapshotError, StagingFull, WireError
from agent.domain.upload_plan import RawFile
from agent.ports import Clock

CHUNK_BYTES = 2**20
STATE_DIR_HINT = "free some space there, or let akosha_agent_state_dir name a directory on a bigger disk"

_FICLONE = 0x40049409
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class SourceChanged(Exception):  # noqa: N818 - not an error: the writer did its work
    """The originals changed under the copy."""


class FileCopy:
    """An original and its copy, both open: close it. Memory is two chunks, whatever the file's size."""

    def __init__(self, found: FoundFile, folder: Path, *, halt: threading.Event) -> None:
        """Open both. Raises SnapshotError, and Moved where the name leads to another file by now."""
        self.found = found
        self.folder = folder
        self.halt = halt
        self.size = 0
        self._sha256 = ""
        try:
            self.original = found.open()
        except OSError as error:
            raise SourceChanged(f"{found.name} was moved") from error
        try:
            status = os.fstat(self.original)
            if (status.st_dev, status.st_ino) != found.identity[1:]:
                raise SourceChanged(f"{found.name} was replaced")
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
                raise SourceChanged(f"{self.found.name} became shorter")
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
                raise SourceChanged(f"{self.found.name} was replaced")

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


MARGIN_BYTES = 16 * 2**20
LEAST_ATTEMPTS = 3

_PAUSE_SECONDS = (0.010, 0.060)
_RESTORE_HINT = "restore it from an earlier upload, or move it out of the data directory"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """The files in the folder. `fingerprint` is of the originals, before the first byte was copied."""

    files: tuple[RawFile, ...]
    fingerprint: Fingerprint
    header: Header
    attempts: int


class _Odd(Exception):  # noqa: N818 - becomes its SnapshotError once the file is seen to stay like that
    """The main file is not what it should be. It may be in the making."""

    def __init__(self, main: FoundFile, error: SnapshotError) -> None:
        super().__init__(error.message)
        self.look = (main.identity, main.stat.st_size, main.stat.st_mtime_ns)
        self.error = error


def copy_database(source: Source, folder: Path, *, clock: Clock, seconds: float, halt: threading.Event) -> DatabaseCopy:
    """Copy into `folder`, which is made, and hash.

    Tries for `seconds`, and at least three times. Raises SnapshotError; it is transient where the writer was too
    quick or the disk has no room (StagingFull). What was copied by then is left for the caller to remove.
    """
    until = clock.monotonic() + seconds
    attempts = 0
    look: object = None
    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-hash") as hashing:
        while not halt.is_set():
            attempts += 1
            try:
                # Hashing while copying saves a second reading, but makes the bracket longer: worth it once.
                files, fingerprint, header = _attempt(source, folder, hashing if attempts == 1 else None, halt)
                return DatabaseCopy(files, fingerprint, header, attempts)
            except _Odd as odd:
                if look == odd.look:
                    raise odd.error from odd
                look, why = odd.look, str(odd)
            except SourceChanged as moved:
                why = str(moved)
            except OSError as error:
                raise SnapshotError(
                    f"cannot read {source.name}: {error.strerror}", hint="check the disk", transient=True
                ) from error
            log.debug("snapshot_retried", database=source.database, attempts=attempts, reason=why)
            if attempts >= LEAST_ATTEMPTS and clock.monotonic() >= until:
                raise SnapshotError(
                    f"{source.name} is too busy: each of {attempts} copies in {seconds:g} s was overtaken ({why})",
                    hint="it is tried again by itself",
                    transient=True,
                )
            halt.wait(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - only meant to fall out of step with the writer
    raise SnapshotError(f"copying {source.name} was cancelled", transient=True)


def _attempt(
    source: Source, folder: Path, hashing: Executor | None, halt: threading.Event
) -> tuple[tuple[RawFile, ...], Fingerprint, Header]:
    found = source.files()
    if not found:
        raise SnapshotError(
            f"there is no {source.name} in {source.data_dir}",
            hint="Session-Buddy makes it; akosha_agent_data_dir says where it is looked for",
        )
    fingerprint = source.fingerprint(found)
    _make_room(folder, found[0].name, needed=fingerprint.size + MARGIN_BYTES)
    with ExitStack() as stack:
        main = stack.enter_context(FileCopy(found[0], folder, halt=halt))
        before = os.pread(main.original, HEADER_BYTES, 0)
        header = _parse(found[0], before)
        # Looked for once more: what was found belongs to this header, and nothing came in between.
        _expect(source, found)
        main.run(hashing)
        sidecars = [stack.enter_context(FileCopy(sidecar, folder, halt=halt)) for sidecar in found[1:]]
        for sidecar in sidecars:
            sidecar.run(hashing)

        for sidecar in sidecars:
            sidecar.check_prefix()
        _expect(source, found)
        if not before == os.pread(main.original, HEADER_BYTES, 0) == os.pread(main.copy, HEADER_BYTES, 0):
            raise SourceChanged("a checkpoint was completed")
        # The bracket is closed: from here on only the copies are read.
        raw = tuple(RawFile(copy.found.name, copy.size, copy.sha256()) for copy in (main, *sidecars))
    return raw, fingerprint, header


def _expect(source: Source, found: tuple[FoundFile, ...]) -> None:
    if [file.identity for file in source.files()] != [file.identity for file in found]:
        raise SourceChanged("a file appeared, vanished or was replaced")


def _make_room(folder: Path, name: str, *, needed: int) -> None:
    """Make the folder, or empty it, and see that the copy will fit."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise staging_error(error, name, folder, needed=needed) from error
    if free < needed:
        raise staging_full(name, folder.parent, needed=needed)


def _parse(main: FoundFile, data: bytes) -> Header:
    try:
        return Header.parse(data)
    except WireError as error:
        raise _Odd(main, _damaged(main, f"it {error.message}")) from error


def _damaged(main: FoundFile, why: str) -> SnapshotError:
    return SnapshotError(f"{main.name} is no whole DuckDB database: {why}", hint=_RESTORE_HINT)
