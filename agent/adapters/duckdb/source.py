"""The files of a database as they look from outside: where they are, their status, the main file's header.

Only `stat` and the header bytes are used. DuckDB follows a symlink before it names the sidecars: the WAL of
`reflection.duckdb -> sub/x.duckdb` is `sub/x.duckdb.wal`. So sidecars are looked for beside the file that the link
leads to. A link that leads out of the data directory is never followed.

The first 12,288 bytes of a DuckDB file are a main header (4096 bytes: checksum, `DUCK`, format version) and two
database headers of 4096 bytes each: seven little-endian u64 - checksum, iteration, meta block, free list, block count,
block size, vector size. A checkpoint writes its blocks beside those in use and then overwrites the header with the
lower iteration; the other one is what the file holds until then.
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

HEADER_BYTES = 12_288

_MAGIC = b"DUCK"
_VERSION = struct.Struct("<Q")
_DATABASE_HEADER = struct.Struct("<7Q")
_MAGIC_AT, _VERSION_AT = 8, 12
_DATABASE_HEADERS_AT = (4096, 8192)
_BLOCK_BYTES = range(4096, 2**24 + 1)


@dataclass(frozen=True, slots=True)
class Header:
    """What the active header says: the format's version, and how many checkpoints there were.

    `iteration` is None where the layout is not the known one (an encrypted file, a format of the future). Such a file
    can be copied all the same: equal bytes are equal. The block count does not help to judge a file's size: free
    blocks at the end are cut off after the header was written, so a healthy file may be shorter than it says.
    """

    version: int
    iteration: int | None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what the header bytes say. Raises WireError where they are not those of a DuckDB file."""
        if len(data) < HEADER_BYTES:
            raise WireError(f"has {len(data):,} bytes, a DuckDB header alone has {HEADER_BYTES:,}")
        if data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise WireError("does not begin as a DuckDB file does")
        (version,) = _VERSION.unpack_from(data, _VERSION_AT)
        headers = (_DATABASE_HEADER.unpack_from(data, at) for at in _DATABASE_HEADERS_AT)
        active = max(headers, key=lambda header: header[1])
        _checksum, iteration, _meta, _free, _count, block_bytes, _vector = active
        known = block_bytes in _BLOCK_BYTES and not block_bytes & (block_bytes - 1)
        return cls(version=version, iteration=iteration if known else None)


_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ABSENT = (errno.ENOENT, errno.ENAMETOOLONG)
_MISSING_HINT = "start Session-Buddy once, mount the disk that it is on, or set akosha_agent_data_dir (--data-dir)"
_DATA_DIR_HINT = "let akosha_agent_data_dir name the directory that holds the databases themselves"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file: its name in the data directory, the path behind it (None: a link that leads out or nowhere)."""

    name: str
    path: str | None
    stat: os.stat_result

    @property
    def identity(self) -> tuple[str, int, int]:
        """Equal as long as the name leads to the same file."""
        return self.name, self.stat.st_dev, self.stat.st_ino

    @property
    def is_regular(self) -> bool:
        return self.path is not None and stat.S_ISREG(self.stat.st_mode)

    @property
    def as_stat(self) -> FileStat:
        return FileStat(self.name, self.stat.st_ino, self.stat.st_size, self.stat.st_mtime_ns)

    def open(self) -> int:
        """Return a descriptor for reading. Raises SnapshotError for what is no readable file, OSError if it moved."""
        if self.path is None:
            raise SnapshotError(
                f"{self.name} is a symlink out of the data directory, or to nothing", hint=_DATA_DIR_HINT
            )
        if stat.S_ISDIR(self.stat.st_mode):
            raise SnapshotError(f"{self.name} is a directory, not a database", hint="move it out of the data directory")
        if not self.is_regular:
            raise SnapshotError(f"{self.name} is not a regular file", hint="move it out of the data directory")
        try:
            descriptor = os.open(self.path, _OPEN)
        except PermissionError as error:
            raise SnapshotError(f"no permission to read {self.name}", hint=f"chmod u+r {self.path}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "replaced by something that is no regular file", self.path)
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
        """Return the main file and the sidecars that exist; nothing where there is no main file.

        A sidecar without its main file is useless: it has the changes to a state that is gone.
        """
        root = os.path.realpath(self.data_dir)
        try:
            main = _look(root, self.name, os.path.join(root, self.name))  # noqa: PTH118 - str in, str out
            if main is None:
                return ()
            if main.path is None:
                return (main,)
            # Backwards: a checkpoint ends with `.wal.checkpoint` taking the place of `.wal`. Looked for in this order,
            # it cannot be missed on the way from the one name to the other while `.wal` still is the old one.
            beside = [_look(root, self.name + suffix, main.path + suffix) for suffix in reversed(SIDECAR_SUFFIXES)]
            return (main, *(found for found in reversed(beside) if found is not None))
        except OSError as error:
            raise _unreachable(self.data_dir, error) from error

    def fingerprint(self, files: tuple[FoundFile, ...]) -> Fingerprint:
        """Return how these files look now: their stats, and a digest of the main file's header bytes."""
        return Fingerprint(tuple(found.as_stat for found in files), _header_digest(files[0]))


def survey(data_dir: Path) -> Survey:
    """Return the fingerprints of all databases. Raises SnapshotError, also where there is no such directory."""
    try:
        with os.scandir(data_dir) as entries:
            names = {entry.name for entry in entries}
    except FileNotFoundError as error:
        raise SnapshotError(f"the data directory {data_dir} does not exist", hint=_MISSING_HINT) from error
    except OSError as error:
        raise _unreachable(data_dir, error) from error
    found: Survey = {}
    for name in sorted(names):
        database = database_of(name)
        if database is not None and name == main_name(database):
            source = Source(data_dir, database)
            if files := source.files():
                found[database] = source.fingerprint(files)
    return found


def _look(root: str, name: str, path: str) -> FoundFile | None:
    try:
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return FoundFile(name, path, status)
        try:
            real = os.path.realpath(path, strict=True)
            inside = Path(real).is_relative_to(root)
            return FoundFile(name, real, os.lstat(real)) if inside else FoundFile(name, None, status)
        except OSError:
            return FoundFile(name, None, status)  # dangling, a loop, or through a directory that is closed to us
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


def _unreachable(data_dir: Path, error: OSError) -> SnapshotError:
    reason = error.strerror or str(error)
    return SnapshotError(f"cannot look into the data directory {data_dir}: {reason}", hint=_DATA_DIR_HINT)
