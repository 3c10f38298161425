"""Facts about the databases: whether they can be read, and which DuckDB reads them. Opens none with DuckDB."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.duckdb.source import HEADER_BYTES, Header, Source
from agent.domain.databases import READ_BY, database_of, main_name
from agent.domain.errors import AkoshaError, SnapshotError, WireError

FORMATS = range(64, 1000)
"""Storage versions that our DuckDB reads: 64 is written by DuckDB 0.10 to 1.1, 999 by 2.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """One database. `size` and `wal` are in bytes, `paths` without symlinks; `problem` is why it cannot be copied."""

    name: str
    size: int
    wal: int = 0
    paths: tuple[str, ...] = ()
    header: Header | None = None
    problem: AkoshaError | None = None

    @property
    def engine(self) -> str:
        """The oldest DuckDB that reads it, "" if unknown."""
        return READ_BY.get(self.header.version, "") if self.header else ""

    @property
    def is_known(self) -> bool:
        """Whether our DuckDB reads it."""
        return self.header is not None and self.header.version in FORMATS and self.header.iteration is not None


def examine(data_dir: Path) -> list[DatabaseFacts]:
    """Return the facts of all databases in a directory; none if it does not exist. Blocks. Raises SnapshotError."""
    try:
        with os.scandir(data_dir) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SnapshotError(f"cannot read the data directory {data_dir}: {error.strerror}") from error
    found = ((name, database_of(name)) for name in names)
    return [_one(data_dir, database) for name, database in found if database and name == main_name(database)]


def _one(data_dir: Path, database: str) -> DatabaseFacts:
    files = Source(data_dir, database).files()
    size = sum(file.stat.st_size for file in files if stat.S_ISREG(file.stat.st_mode))
    wal = sum(file.stat.st_size for file in files[1:])
    paths = tuple(file.path for file in files if file.path)
    header: Header | None = None
    try:
        for file in files:
            descriptor = file.open()
            try:
                if file is files[0]:
                    header = Header.parse(os.pread(descriptor, HEADER_BYTES, 0))
            finally:
                os.close(descriptor)
    except WireError as error:
        problem: AkoshaError | None = SnapshotError(f"{main_name(database)} {error.message}", hint=error.hint)
    except SnapshotError as error:
        problem = error
    except OSError as error:
        problem = SnapshotError(f"{main_name(database)} cannot be read: {error.strerror}")
    else:
        problem = None
    return DatabaseFacts(name=database, size=size, wal=wal, paths=paths, header=header, problem=problem)
