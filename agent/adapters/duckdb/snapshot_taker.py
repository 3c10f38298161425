"""Take snapshots of DuckDB databases. Copying runs in a thread, verification in a child process."""

import asyncio
import contextlib
import os
import shutil
import threading
import uuid
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from agent.adapters.child_process import STALL_SECONDS
from agent.adapters.duckdb import source
from agent.adapters.duckdb.bracketed_copy import WRITABLE_HINT, DatabaseCopy, copy_database
from agent.adapters.duckdb.child_process import WarmChild
from agent.adapters.duckdb.child_protocol import is_scratch
from agent.adapters.duckdb.mirror import MirrorDirectory
from agent.adapters.duckdb.source import Source
from agent.adapters.duckdb.verification import Verdict, verify
from agent.domain.databases import Survey, main_name
from agent.domain.errors import DamagedCopy, SnapshotError, StagedCopyChanged, StagingFull
from agent.ports import Clock, Meter, NoMeter, Snapshot

_NOT_VERIFIED = Verdict(verified=False, reason="verification is switched off")
_HALT_SECONDS = 5.0

LEAST_FREE_BYTES = 32 * 2**20
"""Free space below which the mirror is dropped before a sync."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Taken:
    """A copy, and how long copying took."""

    copy: DatabaseCopy
    seconds: float


class DuckdbSnapshotTaker:
    """Takes snapshots of the databases in `data_dir`, into private folders under `staging_dir`.

    The originals are only read, never locked or opened with DuckDB. Do not use it in the process that writes
    the databases: POSIX drops all of a process's locks on a file when it closes any descriptor of that file.

    `verify` is False in measurements only. The child of `warm`, if given, verifies the copies, and reads them later.
    With a `mirror`, a main file that did not change is not copied.
    """

    def __init__(
        self,
        data_dir: Path,
        staging_dir: Path,
        *,
        clock: Clock,
        verify: bool = True,
        verify_timeout_seconds: float = 600.0,
        verify_stall_seconds: float = STALL_SECONDS,
        bracket_seconds: float = 15.0,
        warm: WarmChild | None = None,
        mirror: MirrorDirectory | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._staging_dir = staging_dir
        self._clock = clock
        self._verify = verify
        self._verify_timeout_seconds, self._verify_stall_seconds = verify_timeout_seconds, verify_stall_seconds
        self._bracket_seconds = bracket_seconds
        self._warm, self._mirror, self._meter = warm, mirror, meter or NoMeter()
        self._copies: dict[Path, _Taken] = {}
        self._cleaning: set[asyncio.Task[None]] = set()
        self._not_removed: set[Path] = set()
        self._is_holder = False

    async def survey(self) -> Survey:
        for folder in list(self._not_removed):
            await self._remove(folder)
        return await asyncio.to_thread(self._survey)

    async def free_bytes(self) -> int | None:
        return await asyncio.to_thread(self._free_bytes)

    async def take(self, database: str) -> Snapshot:
        snapshot = await self.copy(database)
        try:
            return await self.verify(snapshot)
        except DamagedCopy:
            await self.discard(snapshot)
        return await self._verified(await self.copy(database), even_if_damaged=True)

    async def copy(self, database: str) -> Snapshot:
        started = self._clock.monotonic()
        folder = self._staging_dir / f"take-{uuid.uuid4().hex}"
        halt = threading.Event()
        if self._verify and self._warm is not None:
            await self._warm.prepare()  # it starts while the database is copied
        copying = asyncio.create_task(
            asyncio.to_thread(self._copy, database, folder, halt), name=f"snapshot-copy-{database}"
        )
        try:
            copy = await asyncio.shield(copying)
        except BaseException:
            halt.set()
            await self._clean(folder, copying)
            raise
        self._copies[folder] = _Taken(copy, self._clock.monotonic() - started)
        return Snapshot(
            database=database,
            folder=folder,
            files=copy.files,
            fingerprint=copy.fingerprint,
            header_iteration=copy.header.iteration,
            checked=False,
            storage_version=copy.header.version,
        )

    async def verify(self, snapshot: Snapshot) -> Snapshot:
        return await self._verified(snapshot)

    async def discard(self, snapshot: Snapshot) -> None:
        self._copies.pop(snapshot.folder, None)
        await self._remove(snapshot.folder)

    async def sweep(self) -> None:
        if self._warm is not None:
            await self._warm.end()
        await asyncio.to_thread(_empty, self._staging_dir)
        if self._mirror is not None:
            self._is_holder = True
            await asyncio.to_thread(self._mirror.sweep)

    async def _verified(self, snapshot: Snapshot, *, even_if_damaged: bool = False) -> Snapshot:
        """Verify a copy; return it with the result. Raises DamagedCopy, unless `even_if_damaged`.

        Its folder is removed on any other failure.
        """
        taken, started = self._copies[snapshot.folder], self._clock.monotonic()
        try:
            verdict = await self._check(snapshot, taken.copy) if self._verify else _NOT_VERIFIED
        except BaseException:
            await self._clean(snapshot.folder)
            raise
        if verdict.damaged and not even_if_damaged:
            # DuckDB writes the metadata block in place, so a copy of it may be torn.
            log.warning("snapshot_suspect", database=snapshot.database, reason=verdict.reason)
            raise DamagedCopy(snapshot.database, verdict.reason)
        seconds, size = taken.seconds + self._clock.monotonic() - started, sum(file.size for file in snapshot.files)
        self._meter.snapshot(snapshot.database, seconds, size)
        log.info(
            "snapshot_taken",
            database=snapshot.database,
            bytes=size,
            attempts=taken.copy.attempts,
            verified=verdict.verified,
            reason=verdict.reason,
            duration_seconds=round(seconds, 3),
        )
        return replace(
            snapshot,
            checked=True,
            verified=verdict.verified,
            unverified_reason=verdict.reason,
            inconclusive=verdict.inconclusive,
            unreadable=verdict.unreadable,
            rows=verdict.rows,
        )

    async def _check(self, snapshot: Snapshot, copy: DatabaseCopy) -> Verdict:
        """Verify a copy, once more if the child was interrupted; tell the mirror the result."""
        folder, started = snapshot.folder, self._clock.now()
        copied = folder / main_name(snapshot.database)
        whole = not (copy.is_link and copy.main.is_verified(started))
        verdict = await self._verdict(copied, whole=whole)
        if verdict.interrupted:  # as the kernel does if memory is short for a moment
            verdict = await self._verdict(copied, whole=whole)
        await asyncio.to_thread(_remove_scratch, folder)
        if self._mirror is not None:
            if verdict.damaged:
                await asyncio.to_thread(self._mirror.distrust, snapshot.database)
            else:
                state = replace(copy.main, verified_at=started if verdict.verified else None) if whole else copy.main
                await asyncio.to_thread(self._mirror.confirm, snapshot.database, state)
        return verdict

    async def _verdict(self, copied: Path, *, whole: bool) -> Verdict:
        return await verify(
            copied,
            whole=whole,
            timeout_seconds=self._verify_timeout_seconds,
            stall_seconds=self._verify_stall_seconds,
            warm=self._warm,
        )

    def _copy(self, database: str, folder: Path, halt: threading.Event) -> DatabaseCopy:
        _make_private(self._staging_dir)
        original = Source(self._data_dir, database)
        copy = partial(
            copy_database,
            original,
            folder,
            clock=self._clock,
            seconds=self._bracket_seconds,
            halt=halt,
            mirror=self._mirror,
        )
        try:
            copied = copy()
        except StagingFull:
            if self._mirror is None or not self._mirror.drop_all("the disk is full"):
                raise
            copied = copy()
        if self._mirror is not None and self._verify and not copied.is_link:
            self._mirror.put(database, folder / main_name(database), copied.main)
        return copied

    def _survey(self) -> Survey:
        found = source.survey(self._data_dir)
        if self._mirror is not None and self._is_holder:
            if found:  # without any, the disk may not be mounted
                self._mirror.keep_only(found)
            self._make_room(self._mirror)
        return found

    def _make_room(self, mirror: MirrorDirectory) -> None:
        """Drop the mirror if the disk is nearly full: the ledger is written before a copy is made."""
        with contextlib.suppress(OSError):  # the first sync creates the directory
            if shutil.disk_usage(self._staging_dir.parent).free < LEAST_FREE_BYTES:
                mirror.drop_all("the disk is full")

    def _free_bytes(self) -> int | None:
        for folder in (self._staging_dir, self._staging_dir.parent):  # the first sync creates the staging directory
            try:
                return shutil.disk_usage(folder).free + (self._mirror.size() if self._mirror is not None else 0)
            except OSError:
                continue
        return None

    async def _clean(self, folder: Path, copying: asyncio.Task[DatabaseCopy] | None = None) -> None:
        """Wait for the thread that copies to stop, then remove the folder; if cancelled, in the background."""
        self._copies.pop(folder, None)

        async def clean() -> None:
            if copying is not None:
                await asyncio.wait({copying}, timeout=_HALT_SECONDS)
            await self._remove(folder)

        task = asyncio.create_task(clean(), name="snapshot-clean")
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.shield(task)

    async def _remove(self, folder: Path) -> None:
        if self._warm is not None:
            await self._warm.release(folder)
        if await asyncio.to_thread(_remove, folder, quiet=folder in self._not_removed):
            self._not_removed.discard(folder)
        else:
            self._not_removed.add(folder)


def _make_private(staging: Path) -> None:
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        if staging.stat().st_mode & 0o077:
            staging.chmod(0o700)
    except OSError as error:
        raise SnapshotError(
            f"cannot create the staging directory {staging}: {error.strerror}",
            hint=WRITABLE_HINT,
            transient=True,
        ) from error


def _empty(staging: Path) -> None:
    try:
        with os.scandir(staging) as entries:
            left = [Path(entry.path) for entry in entries]
    except FileNotFoundError:
        return
    except OSError as error:
        raise SnapshotError(f"cannot read the staging directory {staging}: {error.strerror}") from error
    for path in left:
        _remove(path)


def _remove_scratch(folder: Path) -> None:
    """Remove what a child that was killed has left next to the copy."""
    try:
        found = list(folder.iterdir())
    except OSError as error:  # another program has removed the folder
        raise StagedCopyChanged(
            f"cannot read the copy in {folder}: {error.strerror}",
            hint="set akosha_agent_state_dir to a directory in which no other program deletes files",
            transient=True,
        ) from error
    for path in found:
        if is_scratch(path.name):
            _remove(path)


def _remove(path: Path, *, quiet: bool = False) -> bool:
    """Remove a folder or a file; return whether it is gone. A failure is logged, unless `quiet`."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError as error:
        if not quiet:
            log.warning("staging_not_removed", path=str(path), reason=error.strerror)
        return False
    return True
