"""The files of a database: their paths, their stats, and the header of the main file.

Only `stat` and the header bytes are read. DuckDB resolves a symlink before it names the sidecars: the WAL of
`reflection.duckdb -> sub/x.duckdb` is `sub/x.duckdb.wal`. So sidecars are searched next to the target of the link.
A link to a target outside the data directory is never followed.

The first 12,288 bytes of a DuckDB file are a main header (4096 bytes: checksum, `DUCK`, format version) and two
database headers of 4096 bytes each: seven little-endian u64 - checksum, iteration, meta block, free list, block count,
block size, vector size. A checkpoint writes its blocks to unused space, then overwrites the header with the lower
iteration. Until then the other header is the active one.
"""

import errno
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.domain.databases import SIDECAR_SUFFIXES, FileStat, Fingerprint, Survey, database_of, main_name
from agent.domain.errors import SnapshotError, WireError
from agent.domain.parsing import LARGEST_NUMBER

HEADER_BYTES = 12_288

_MAGIC = b"DUCK"
_VERSION = struct.Struct("<Q")
_DATABASE_HEADER = struct.Struct("<7Q")
_MAGIC_AT, _VERSION_AT = 8, 12
_DATABASE_HEADERS_AT = (4096, 8192)
_BLOCK_BYTES = range(4096, 2**24 + 1)

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ABSENT = (errno.ENOENT, errno.ENAMETOOLONG)
_MISSING_HINT = "start Session-Buddy once, mount the disk with the directory, or set akosha_agent_data_dir (--data-dir)"
_DATA_DIR_HINT = "set akosha_agent_data_dir to the directory that contains the databases"


@dataclass(frozen=True, slots=True)
class Header:
    """The active header: the storage version, and the number of checkpoints (`iteration`).

    `iteration` is None if the layout is unknown (an encrypted file, a future format, damage). The file can be copied
    even so, because only equality of the header bytes matters. The block count does not give the file's size: free
    blocks at the end are truncated after the header was written, so a healthy file may be shorter.
    """

    version: int
    iteration: int | None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the header bytes. Raises WireError if they are not those of a DuckDB file."""
        if len(data) < HEADER_BYTES:
            raise WireError(f"has {len(data):,} bytes, but a DuckDB header has {HEADER_BYTES:,}")
        if data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise WireError("does not start with a DuckDB header")
        (version,) = _VERSION.unpack_from(data, _VERSION_AT)
        if version > LARGEST_NUMBER:  # a manifest with it could not be read
            raise WireError("starts with a damaged DuckDB header: no DuckDB has its storage version")
        headers = (_DATABASE_HEADER.unpack_from(data, at) for at in _DATABASE_HEADERS_AT)
        active = max(headers, key=lambda header: header[1])
        _checksum, iteration, _meta, _free, _count, block_bytes, _vector = active
        known = iteration <= LARGEST_NUMBER and block_bytes in _BLOCK_BYTES and not block_bytes & (block_bytes - 1)
        return cls(version=version, iteration=iteration if known else None)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file: its name in the data directory, and its real path; None for a link that is broken or leads outside."""

    name: str
    path: str | None
    stat: os.stat_result

    @property
    def identity(self) -> tuple[str, int, int]:
        """Equal while the name refers to the same file."""
        return self.name, self.stat.st_dev, self.stat.st_ino

    @property
    def is_regular(self) -> bool:
        return self.path is not None and stat.S_ISREG(self.stat.st_mode)

    @property
    def as_stat(self) -> FileStat:
        return FileStat(self.name, self.stat.st_ino, self.stat.st_size, self.stat.st_mtime_ns)

    def open(self) -> int:
        """Return a descriptor for reading. Raises SnapshotError if it is not a readable file, OSError if it moved."""
        if self.path is None:
            raise SnapshotError(
                f"{self.name} is a symlink that is broken or leads out of the data directory", hint=_DATA_DIR_HINT
            )
        if stat.S_ISDIR(self.stat.st_mode):
            raise SnapshotError(f"{self.name} is a directory, not a database", hint="move it out of the data directory")
        if not self.is_regular:
            raise SnapshotError(f"{self.name} is not a regular file", hint="move it out of the data directory")
        try:
            descriptor = os.open(self.path, _OPEN)
        except PermissionError as error:
            raise SnapshotError(
                f"no permission to read {self.name}", hint=f"chmod u+r {self.path}", transient=True
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "replaced by something other than a regular file", self.path)
        return descriptor


@dataclass(frozen=True, slots=True)
class Source:
    """One database in the data directory."""

    data_dir: Path
    database: str

    @property
    def name(self) -> str:
        return main_name(self.database)

    def files(self) -> tuple[FoundFile, ...]:
        """Return the main file and the sidecars that exist; nothing if there is no main file.

        A sidecar without its main file is useless: it contains changes to a state that is lost.
        """
        root = os.path.realpath(self.data_dir)
        try:
            main = _find_file(root, self.name, os.path.join(root, self.name))  # noqa: PTH118 - str in, str out
            if main is None:
                return ()
            if main.path is None:
                return (main,)
            # In reverse order: a checkpoint ends by renaming `.wal.checkpoint` to `.wal`. In this order, the file
            # cannot be missed during the rename while the old `.wal` is returned.
            beside = [_find_file(root, self.name + suffix, main.path + suffix) for suffix in reversed(SIDECAR_SUFFIXES)]
            return (main, *(found for found in reversed(beside) if found is not None))
        except OSError as error:
            raise _unreadable(self.data_dir, error) from error

    def fingerprint(self, files: tuple[FoundFile, ...]) -> Fingerprint:
        """Return the stats of these files, and a digest of the main file's header bytes."""
        return Fingerprint(tuple(found.as_stat for found in files), _header_digest(files[0]))


def survey(data_dir: Path) -> Survey:
    """Return the fingerprints of all databases. Raises SnapshotError, also if the directory does not exist."""
    try:
        with os.scandir(data_dir) as entries:
            names = {entry.name for entry in entries}
    except FileNotFoundError as error:
        raise SnapshotError(f"the data directory {data_dir} does not exist", hint=_MISSING_HINT) from error
    except OSError as error:
        raise _unreadable(data_dir, error) from error
    found: Survey = {}
    for name in sorted(names):
        database = database_of(name)
        if database is not None and name == main_name(database):
            source = Source(data_dir, database)
            if files := source.files():
                found[database] = source.fingerprint(files)
    return found


def _find_file(root: str, name: str, path: str) -> FoundFile | None:
    try:
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return FoundFile(name, path, status)
        try:
            real = os.path.realpath(path, strict=True)
            inside = Path(real).is_relative_to(root)
            return FoundFile(name, real, os.lstat(real)) if inside else FoundFile(name, None, status)
        except OSError:
            return FoundFile(name, None, status)  # broken, a loop, or through a directory without permission
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _header_digest(main: FoundFile) -> str:
    try:
        descriptor = main.open()
    except (SnapshotError, OSError):
        return ""  # the digest stays empty; copying the database gives the reason
    try:
        return hashlib.sha256(os.pread(descriptor, HEADER_BYTES, 0)).hexdigest()[:16]
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _unreadable(data_dir: Path, error: OSError) -> SnapshotError:
    reason = error.strerror or str(error)
    return SnapshotError(f"cannot read the data directory {data_dir}: {reason}", hint=_DATA_DIR_HINT, transient=True)
