"""The header-bracketed copy: consistent without a lock, even if the writer commits and checkpoints all the time.

DuckDB never overwrites a data block that the active header refers to. A checkpoint is complete when the other header
becomes active; only then may DuckDB reuse old blocks. So the main file is copied between two reads of its header bytes.
If they are equal, no checkpoint was completed in between, and all blocks of the copy belong to that header.
The exception is a block of metadata (DuckDB 1.5 and 2.0): a checkpoint appends to it in place, before the header. The
old content stays, but a copy made during that write may be torn. Its checksum is wrong then, so verification finds it.
The sidecars are read after the main file and must belong to the same header: none appears or disappears, each is still
the same file and still starts with exactly the copied bytes. All commits before the copy started are in the main file
or the sidecars by then; DuckDB ignores an incomplete commit at the end of a sidecar when it replays it. If anything has
changed, the copy is repeated.

Each file is copied through one descriptor: as a clone that shares blocks if the file system supports it, else byte by
byte. The functions block and run in a thread. `halt` stops them at the next chunk.

If the main file has the bytes that the mirror has, the copy is a hard link of the mirror's file. It has them if its
header bytes are those of the mirror's file, and its inode, size, mtime and ctime are the same as at the time of the
copy, both before and after the sidecars are read. DuckDB may write blocks before it writes the header, and a file
system may give a later write the same time. So these are trusted only if the last write was SETTLED_SECONDS before the
copy. Otherwise the bytes are compared.
"""

import fcntl
import os
import random
import shutil
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import structlog

from agent.adapters import fs
from agent.adapters.block_checksums import Digests
from agent.adapters.disk_errors import FULL
from agent.adapters.duckdb.mirror import MainFile, MirrorDirectory, MirrorState, OriginalStat
from agent.adapters.duckdb.source import HEADER_BYTES, FoundFile, Header, Source
from agent.domain.databases import Fingerprint
from agent.domain.errors import SnapshotError, StagingFull, WireError
from agent.domain.upload_plan import RawFile
from agent.ports import Clock

CHUNK_BYTES = 2**20
STATE_DIR_HINT = "free disk space there, or set akosha_agent_state_dir to a directory on a larger disk"
WRITABLE_HINT = "set akosha_agent_state_dir to a directory that you may write to"

_FICLONE = 0x40049409
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

_OPEN_LINK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

SETTLED_SECONDS = 2.0
"""File systems round times by up to this much (FAT)."""

MARGIN_BYTES = 16 * 2**20
LEAST_ATTEMPTS = 3

_PAUSE_SECONDS = (0.010, 0.060)
_RESTORE_HINT = "restore it from an earlier upload, or move it out of the data directory"

log = structlog.get_logger()


class SourceChanged(Exception):  # noqa: N818 - not an error: the writer may write at any time
    """The originals changed during the copy."""


class FileCopy:
    """An open original and its open copy; a context manager. Uses two chunks of memory, whatever the file's size."""

    def __init__(self, found: FoundFile, folder: Path, *, halt: threading.Event) -> None:
        """Open both. Raises SnapshotError, SourceChanged if the name now refers to another file."""
        self.found = found
        self.folder = folder
        self.halt = halt
        self.size = 0
        self._digests: MainFile | None = None
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
        """Copy the bytes that the original has now; with `hashing`, compute the SHA-256 in parallel.

        Raises SourceChanged if it became shorter, SnapshotError, OSError if the original cannot be read.
        """
        if _clone(self.original, self.copy):
            self.size = os.fstat(self.copy).st_size
            return
        self.size = os.fstat(self.original).st_size
        digests = Digests()
        buffers = [memoryview(bytearray(min(CHUNK_BYTES, max(self.size, 1)))) for _ in range(2)]
        hashed: list[Future[None] | None] = [None, None]
        done = turn = 0
        while done < self.size:
            self._check_halt()
            if (pending := hashed[turn]) is not None:
                pending.result()
            count = os.readv(self.original, [buffers[turn][: self.size - done]])
            if count == 0:
                raise SourceChanged(f"{self.found.name} became shorter")
            chunk = buffers[turn][:count]
            if hashing is not None:
                hashed[turn] = hashing.submit(digests.update, chunk)
            self._write(chunk)
            done += count
            turn = 1 - turn
        for pending in hashed:
            if pending is not None:
                pending.result()
        if hashing is not None:
            self._digests = MainFile.of(digests)

    def link(self, path: Path, main: MainFile) -> None:
        """Make the copy a hard link of a file with these bytes. Raises OSError."""
        copy = self.folder / self.found.name
        copy.unlink()
        copy.hardlink_to(path)
        linked = os.open(copy, _OPEN_LINK)
        os.close(self.copy)
        self.copy, self.size, self._digests = linked, main.size, main

    def check_prefix(self) -> None:
        """Raise SourceChanged unless the original still starts with exactly the bytes of the copy."""
        if not self.has_same_bytes(self.copy, self.size):
            raise SourceChanged(f"{self.found.name} was replaced")

    def has_same_bytes(self, other: int, size: int) -> bool:
        """Return whether the first `size` bytes of the original are those of the open file `other`."""
        for at in range(0, size, CHUNK_BYTES):
            self._check_halt()
            count = min(CHUNK_BYTES, size - at)
            if os.pread(self.original, count, at) != os.pread(other, count, at):
                return False
        return True

    def digests(self) -> MainFile:
        """Return the digests of the copy. Reads the copy if `run` did not hash it."""
        if self._digests is None:
            digests = Digests()
            buffer = memoryview(bytearray(CHUNK_BYTES))
            os.lseek(self.copy, 0, os.SEEK_SET)
            while count := os.readv(self.copy, [buffer]):
                self._check_halt()
                digests.update(buffer[:count])
            self._digests = MainFile.of(digests)
        return self._digests

    def _write(self, chunk: memoryview) -> None:
        written = 0
        try:
            while written < len(chunk):
                written += os.write(self.copy, chunk[written:])
        except OSError as error:
            raise staging_error(error, self.found.name, self.folder, needed=self.size) from error

    def _check_halt(self) -> None:
        if self.halt.is_set():
            raise SnapshotError(f"copying {self.found.name} was cancelled", transient=True)


def staging_error(error: OSError, name: str, folder: Path, *, needed: int = 0) -> SnapshotError:
    """Return the error for a copy that could not be written. It is transient: no event tells when it can be."""
    staging = folder.parent
    if error.errno in FULL:
        return staging_full(name, staging, needed=needed, reason=f" ({error.strerror})")
    return SnapshotError(
        f"cannot copy {name} to {staging}: {error.strerror}",
        hint=WRITABLE_HINT,
        transient=True,
    )


def staging_full(name: str, staging: Path, *, needed: int, reason: str = "") -> StagingFull:
    """Return the error with the needed and the free bytes. It is transient: space may be freed."""
    try:
        free = f"{shutil.disk_usage(staging).free:,} bytes free"
    except OSError as error:
        free = f"free space unknown ({error.strerror})"
    return StagingFull(
        f"no room to copy {name} to {staging}{reason}: {needed:,} bytes needed, {free}",
        hint=STATE_DIR_HINT,
        transient=True,
    )


def _clone(original: int, copy: int) -> bool:
    """Clone the file if the file system can share blocks (btrfs, XFS, bcachefs): takes milliseconds for any size."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False  # not supported, or another file system
    return True


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """The copied files. `fingerprint` is that of the originals before the first byte was copied.

    `main` is the state of the main file for the mirror; `is_link`: the copy is a hard link of the mirror's file.
    """

    files: tuple[RawFile, ...]
    fingerprint: Fingerprint
    header: Header
    main: MirrorState
    is_link: bool
    attempts: int = 1


class _InvalidMain(Exception):  # noqa: N818 - its SnapshotError is raised if the file does not change
    """The main file is not a valid database. Session-Buddy may just be creating it."""

    def __init__(self, main: FoundFile, error: SnapshotError) -> None:
        super().__init__(error.message)
        self.state = (main.identity, main.stat.st_size, main.stat.st_mtime_ns)
        self.error = error


def copy_database(
    source: Source,
    folder: Path,
    *,
    clock: Clock,
    seconds: float,
    halt: threading.Event,
    mirror: MirrorDirectory | None = None,
) -> DatabaseCopy:
    """Copy a database into `folder`, which is created, and hash the files. Link the main file from `mirror` if it can.

    Makes attempts for `seconds`, and at least three. Raises SnapshotError; it is permanent only if a file is not that
    of a database: every other cause may end without a change of the files. The caller removes the folder.
    """
    until = clock.monotonic() + seconds
    attempts = 0
    invalid_state: object = None
    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-hash") as hashing:
        while not halt.is_set():
            attempts += 1
            try:
                # Hashing while copying saves a second read, but makes a change more likely: only in the first attempt.
                copy = _attempt(source, folder, hashing if attempts == 1 else None, halt, clock, mirror)
                return replace(copy, attempts=attempts)
            except _InvalidMain as invalid:
                if invalid_state == invalid.state:
                    raise invalid.error from invalid
                invalid_state, reason = invalid.state, str(invalid)
            except SourceChanged as changed:
                reason = str(changed)
            except OSError as error:
                raise SnapshotError(
                    f"cannot read {source.name}: {error.strerror}", hint="check the disk", transient=True
                ) from error
            log.debug("snapshot_retried", database=source.database, attempts=attempts, reason=reason)
            if attempts >= LEAST_ATTEMPTS and clock.monotonic() >= until:
                raise SnapshotError(
                    f"{source.name} is too busy: each of {attempts} copies in {seconds:g} s was outdated ({reason})",
                    hint="the agent retries",
                    transient=True,
                )
            halt.wait(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - avoids running in step with the writer
    raise SnapshotError(f"copying {source.name} was cancelled", transient=True)


def _attempt(
    source: Source,
    folder: Path,
    hashing: Executor | None,
    halt: threading.Event,
    clock: Clock,
    mirror: MirrorDirectory | None,
) -> DatabaseCopy:
    found = source.files()
    if not found:
        raise SnapshotError(
            f"there is no {source.name} in {source.data_dir}",
            hint="Session-Buddy creates it; akosha_agent_data_dir sets the directory",
            transient=True,  # its disk may be mounted again, with the same files
        )
    fingerprint = source.fingerprint(found)
    settled = _prepare(folder, found[0].name, clock) - int(SETTLED_SECONDS * 10**9)
    with ExitStack() as stack:
        main = stack.enter_context(FileCopy(found[0], folder, halt=halt))
        before, stats = os.pread(main.original, HEADER_BYTES, 0), OriginalStat.of(os.fstat(main.original))
        header = _parse(found[0], before)
        # The files must be the same after the header was read: then they belong to this header.
        _expect_same_files(source, found)
        unsettled = max(stats.mtime_ns, stats.ctime_ns) > settled
        latest = _link_unchanged(main, before, None if unsettled else stats, mirror, source.database)
        linked_bytes = latest.main.size if latest else 0
        _check_room(folder, found[0].name, needed=fingerprint.size - linked_bytes + MARGIN_BYTES)
        if latest is None:
            main.run(hashing)
        sidecars = [stack.enter_context(FileCopy(sidecar, folder, halt=halt)) for sidecar in found[1:]]
        for sidecar in sidecars:
            sidecar.run(hashing)

        for sidecar in sidecars:
            sidecar.check_prefix()
        _expect_same_files(source, found)
        if not before == os.pread(main.original, HEADER_BYTES, 0) == os.pread(main.copy, HEADER_BYTES, 0):
            raise SourceChanged("a checkpoint was completed")
        if OriginalStat.of(os.fstat(main.original)) != stats:
            if latest is not None:
                raise SourceChanged("the main file was written")
            unsettled = True
        # From here on only the copies are read.
        digests = [copy.digests() for copy in (main, *sidecars)]
    state = MirrorState(
        main=digests[0],
        original=None if unsettled else stats,
        verified_at=latest.verified_at if latest else None,
    )
    files = tuple(
        RawFile(file.name, each.size, each.sha256, each.checksums) for file, each in zip(found, digests, strict=True)
    )
    return DatabaseCopy(files, fingerprint, header, state, is_link=latest is not None)


def _link_unchanged(
    main: FileCopy, header: bytes, stats: OriginalStat | None, mirror: MirrorDirectory | None, database: str
) -> MirrorState | None:
    """Link the copy to the latest file of the mirror if the original has its bytes, and return its state; else None.

    `stats` are those of the original, None if they may stay the same when it is written.
    """
    latest = mirror.latest(database) if mirror else None
    if mirror is None or latest is None:
        return None
    path = mirror.path_of(database, latest)
    try:
        descriptor = fs.open_regular(path)
        try:
            if os.pread(descriptor, HEADER_BYTES, 0) != header or os.fstat(main.original).st_size != latest.main.size:
                return None
            if not mirror.is_intact(database, latest):
                return None
            is_same = stats is not None and stats == latest.original
            if not is_same and not main.has_same_bytes(descriptor, latest.main.size):
                return None
        finally:
            os.close(descriptor)
        main.link(path, latest.main)
    except (OSError, ValueError) as error:  # the mirror's: for the original, the copy finds it again
        mirror.drop(database, getattr(error, "strerror", None) or str(error))
        raise SourceChanged("the mirror could not be used") from error
    return latest


def _expect_same_files(source: Source, found: tuple[FoundFile, ...]) -> None:
    if [file.identity for file in source.files()] != [file.identity for file in found]:
        raise SourceChanged("a file appeared, disappeared or was replaced")


def _prepare(folder: Path, name: str, clock: Clock) -> int:
    """Create the folder, or empty it. Return the time in nanoseconds.

    The folder was modified just now: its time is that of the file system's clock. If `clock` differs, the earlier of
    the two is returned: a file must look new rather than old.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        os.utime(folder)
        return min(folder.stat().st_mtime_ns, int(clock.now().timestamp() * 10**9))
    except OSError as error:
        raise staging_error(error, name, folder) from error


def _check_room(folder: Path, name: str, *, needed: int) -> None:
    """Check that the copy fits on the disk. Raises StagingFull."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise staging_error(error, name, folder, needed=needed) from error
    if free < needed:
        raise staging_full(name, folder.parent, needed=needed)


def _parse(main: FoundFile, data: bytes) -> Header:
    try:
        return Header.parse(data)
    except WireError as error:
        message = f"{main.name} is not a complete DuckDB database: it {error.message}"
        raise _InvalidMain(main, SnapshotError(message, hint=_RESTORE_HINT)) from error
