"""The mirror: the main files of the databases as they were last copied, in `{state_dir}/mirror/{database}/`.

While a main file stays the same, a snapshot links the file of the mirror and copies the sidecars only. The file of the
last delivered state is what a patch is made against.

    {SHA-256}    a main file with these bytes, a hard link of a staged copy
    record       the SHA-256 of the next line, then JSON: the latest file, the stats of its original, what to keep

The mirror is never trusted. Nothing is flushed to the disk: after a power cut, a kill or a flipped bit, the record or a
file may have any bytes. So the record contains its own digest, and a checksum of each block of each file, which are
compared each time a file is used. What does not match is removed, and the next snapshot reads the original. A failure
of the mirror is logged, and never an error of a snapshot.

All calls of `MirrorDirectory` may come from any thread.
"""

import asyncio
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import orjson
import structlog

from agent.adapters import fs
from agent.adapters.block_checksums import BLOCK_BYTES, Digests, has_checksum

CHECK_AGAIN = timedelta(days=1)
"""After this time DuckDB verifies the whole copy again."""

_RECORD = "record"  # another format gets another name: a version that does not know it removes the files
_MOST_RECORD_BYTES = 64 * 2**20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MainFile:
    """The bytes of a main file: SHA-256, size, and the CRC-32 of each block of BLOCK_BYTES."""

    sha256: str
    size: int
    checksums: tuple[int, ...]

    @classmethod
    def of(cls, digests: Digests) -> Self:
        return cls(digests.sha256, digests.size, digests.checksums)


@dataclass(frozen=True, slots=True)
class OriginalStat:
    """The stats of an original main file when it was copied."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorState:
    """The latest main file.

    `original`: stats of the original that prove that it has these bytes as long as they are the same; None if the
    original was written so shortly before the copy that a later write may leave the stats the same. `verified_at`: when
    DuckDB last read all of the file without an error, None if it never did.
    """

    main: MainFile
    original: OriginalStat | None = None
    verified_at: datetime | None = None

    def is_verified(self, now: datetime) -> bool:
        """Return whether DuckDB has read all of the file less than CHECK_AGAIN ago."""
        return self.verified_at is not None and timedelta() <= now - self.verified_at < CHECK_AGAIN


@dataclass(frozen=True, slots=True)
class _Record:
    """What the mirror has of one database. `retained`: the files to keep besides the latest."""

    latest: MirrorState | None = None
    files: dict[str, MainFile] = field(default_factory=dict)
    retained: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        latest, original = self.latest, self.latest.original if self.latest else None
        document = orjson.dumps(
            {
                "latest": latest and latest.main.sha256,
                "original": original and [original.inode, original.size, original.mtime_ns, original.ctime_ns],
                "verified_at": latest and latest.verified_at,
                "retained": sorted(self.retained),
                "files": {
                    file.sha256: {"size": file.size, "checksums": list(file.checksums)} for file in self.files.values()
                },
            }
        )
        return b"%s\n%s\n" % (hashlib.sha256(document).hexdigest().encode(), document)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError if a byte was changed."""
        digest, _, document = data.removesuffix(b"\n").partition(b"\n")
        if hashlib.sha256(document).hexdigest().encode() != digest:
            raise ValueError("its record is damaged")
        found = orjson.loads(document)
        files = {name: MainFile(name, each["size"], tuple(each["checksums"])) for name, each in found["files"].items()}
        latest = found["latest"] and MirrorState(
            main=files[found["latest"]],
            original=found["original"] and OriginalStat(*found["original"]),
            verified_at=found["verified_at"] and datetime.fromisoformat(found["verified_at"]),
        )
        return cls(latest or None, files, frozenset(found["retained"]))


class MirrorDirectory:
    """The mirror in `path`; implements `Mirror`. Without `is_on` it is always empty, and `sweep` removes its files.

    Without `makes_patches`, `sweep` removes the files that only patches need. The constructor does no I/O. Only the
    process that holds the state directory may use it.
    """

    def __init__(self, path: Path, *, is_on: bool = True, makes_patches: bool = True) -> None:
        self._path = path
        self._is_on, self._makes_patches = is_on, makes_patches
        self._lock = threading.RLock()
        self._records: dict[str, _Record] = {}
        self._reasons: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------------- `Mirror`

    async def file(self, database: str, sha256: str) -> Path | None:
        return await asyncio.to_thread(self._intact_file, database, sha256)

    async def retain(self, database: str, digests: Collection[str]) -> None:
        await asyncio.to_thread(self._retain, database, frozenset(digests))

    # --------------------------------------------------------------------------------- for snapshots; all calls block

    def latest(self, database: str) -> MirrorState | None:
        """Return the latest main file, None if there is none. Its bytes are not checked."""
        with self._lock:
            return self._record(database).latest

    def is_intact(self, database: str, state: MirrorState) -> bool:
        """Compare the bytes of a main file with its checksums; remove it if they differ."""
        return self._intact_file(database, state.main.sha256) is not None

    def path_of(self, database: str, state: MirrorState) -> Path:
        """Return the path of a main file of the mirror. Nothing may write to that file."""
        return self._path / database / state.main.sha256

    def put(self, database: str, copy: Path, state: MirrorState) -> None:
        """Make a copied main file the latest: link it, and remove the earlier latest unless it is retained.

        Does nothing if the disk would have no room for the next copy beside it. From here on, nothing may write to the
        copy.
        """
        if not self._is_on:
            return
        with self._lock:
            record, folder = self._record(database), self._path / database
            try:
                for directory in (self._path, folder):
                    directory.mkdir(mode=0o700, exist_ok=True)
                if shutil.disk_usage(folder).free < state.main.size:
                    raise OSError("the disk has no room for another copy")
                path = self.path_of(database, state)
                if not path.exists() or not path.samefile(copy):
                    path.unlink(missing_ok=True)
                    path.hardlink_to(copy)
                self._write(
                    database, replace(record, latest=state, files=record.files | {state.main.sha256: state.main})
                )
            except OSError as error:
                self._drop(database, error.strerror or str(error))

    def confirm(self, database: str, state: MirrorState) -> None:
        """Replace what is known about the latest main file, whose bytes are the same."""
        with self._lock:
            record = self._record(database)
            if record.latest is not None and record.latest.main == state.main and record.latest != state:
                self._save(database, replace(record, latest=state))

    def distrust(self, database: str) -> None:
        """Let the next copy compare the latest main file with the original, and DuckDB read all of it.

        A copy with it looks damaged. The cause may be the WAL, or a torn copy of a block that the original has whole by
        now, so the files are kept.
        """
        with self._lock:
            record = self._record(database)
            if record.latest is not None:
                self._save(database, replace(record, latest=MirrorState(main=record.latest.main)))

    def drop(self, database: str, reason: str) -> None:
        """Remove all files of a database."""
        with self._lock:
            self._drop(database, reason)

    def drop_all(self, reason: str) -> bool:
        """Remove all files, for example to free disk space; return whether any were removed."""
        with self._lock:
            databases = self._databases()
            for database in databases:
                self._drop(database, reason)
            return len(self._databases()) < len(databases)

    def keep_only(self, databases: Collection[str]) -> None:
        """Remove the files of other databases."""
        with self._lock:
            for database in self._databases():
                if database not in databases:
                    self._drop(database, "the database was removed")

    def sweep(self) -> None:
        """Remove the mirror if it is switched off, or the files that nothing needs any more."""
        if not self._makes_patches:
            for database in self._databases():
                self._retain(database, frozenset())
        if not self._is_on:
            self.drop_all("it is switched off")
            with suppress(OSError):
                self._path.rmdir()

    def size(self) -> int:
        """Return the bytes on the disk that `drop_all` frees, at most: blocks that the original shares stay.

        Changes nothing.
        """
        sizes = 0
        for path in self._path.rglob("*"):
            with suppress(OSError):
                sizes += path.lstat().st_size
        return sizes

    # -------------------------------------------------------------------------------------------------------- private

    def _intact_file(self, database: str, sha256: str) -> Path | None:
        with self._lock:
            record = self._record(database)
            file = record.files.get(sha256)
            if file is None:
                return None
            path = self._path / database / sha256
            try:
                if self._is_intact(path, file):
                    return path
                reason = "its bytes were changed"
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
            log.warning("mirror_damaged", database=database, reason=reason)
            self._forget(database, record, sha256)
            return None

    @staticmethod
    def _is_intact(path: Path, file: MainFile) -> bool:
        descriptor = fs.open_regular(path)
        try:
            status = os.fstat(descriptor)
            if status.st_size != file.size or status.st_uid != os.geteuid():
                return False
            buffer = memoryview(bytearray(BLOCK_BYTES))
            for number, checksum in enumerate(file.checksums):
                count = os.preadv(descriptor, [buffer], number * BLOCK_BYTES)
                if not has_checksum(buffer[:count], checksum):
                    return False
        finally:
            os.close(descriptor)
        return True

    def _retain(self, database: str, digests: frozenset[str]) -> None:
        with self._lock:
            record = self._record(database)
            if record.retained != (retained := digests & record.files.keys()):
                self._save(database, replace(record, retained=retained))

    def _forget(self, database: str, record: _Record, sha256: str) -> None:
        latest = None if record.latest and record.latest.main.sha256 == sha256 else record.latest
        files = {name: file for name, file in record.files.items() if name != sha256}
        self._save(database, replace(record, latest=latest, files=files, retained=record.retained - {sha256}))

    def _record(self, database: str) -> _Record:
        """Return the record of a database; at the first call, read it and remove the files that it does not name."""
        if not self._is_on:
            return _Record()
        if database not in self._records:
            self._records[database] = self._load(database)
        return self._records[database]

    def _load(self, database: str) -> _Record:
        folder = self._path / database
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise NotADirectoryError("it is not a directory")
            record = _Record.decode(fs.read_own(folder / _RECORD, _MOST_RECORD_BYTES))
            self._remove_others(folder, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if folder.is_symlink() or folder.exists():
                self._drop(database, getattr(error, "strerror", None) or str(error))
            return _Record()
        return record

    def _save(self, database: str, record: _Record) -> None:
        try:
            self._write(database, record)
        except OSError as error:
            self._drop(database, error.strerror or str(error))

    def _write(self, database: str, record: _Record) -> None:
        """Write a record, then remove the files that are neither the latest nor retained. Raises OSError."""
        folder = self._path / database
        wanted = {*record.retained, *([record.latest.main.sha256] if record.latest else [])}
        kept = replace(record, files={name: file for name, file in record.files.items() if name in wanted})
        draft = folder / f"{_RECORD}{fs.DRAFT_SUFFIX}"
        draft.unlink(missing_ok=True)
        with fs.create(draft) as file:
            file.write(kept.encode())
        draft.rename(folder / _RECORD)
        self._records[database] = kept
        self._remove_others(folder, kept)

    def _remove_others(self, folder: Path, record: _Record) -> None:
        for path in folder.iterdir():
            if path.name != _RECORD and path.name not in record.files:
                _remove(path)

    def _drop(self, database: str, reason: str) -> None:
        if self._reasons.get(database) != reason:  # a disk without hard links, for example, is reported once
            log.info("mirror_dropped", database=database, reason=reason)
        self._reasons[database] = reason
        self._records[database] = _Record()
        folder = self._path / database
        try:
            _remove(folder)
        except OSError as error:
            log.warning("mirror_not_removed", path=str(folder), reason=error.strerror)

    def _databases(self) -> list[str]:
        try:
            return sorted(os.listdir(self._path))  # noqa: PTH208 - the names only
        except OSError:
            return []


def _remove(path: Path) -> None:
    """Remove a file, a link or a directory, if it exists. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
