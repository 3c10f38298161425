"""Recognizes memory databases in the data directory, and detects their changes.

Session-Buddy's recent commits are in sidecar files: the main file of a first session has 12,288 bytes and no table. A
database is its main file *and* its sidecars; the main file alone may lack an entire session.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

SIDECAR_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery", ".checkpoint.wal", ".recovery.wal")
"""Suffixes that DuckDB appends to the main file's name. DuckDB 1.5 and 2.0 write the first three (commits made during a
checkpoint go to the second); DuckDB's documentation names the last two."""

READ_BY = {64: "1.0", 65: "1.2", 66: "1.3", 67: "1.4", 68: "1.5", 999: "2.0"}
"""Storage version in the main file's header -> the oldest DuckDB release that reads it."""

_OLDEST_WRITER = 68
"""The storage version that every DuckDB supported by Session-Buddy (1.5.3 or newer) reads."""

REFLECTIONS = "reflection"
KNOWLEDGE_GRAPH = "knowledge_graph"

CONVERSATION_TABLES = ("conversations_v2", "conversations")
"""The tables of conversations, the newer one first: if it exists, it has all of them."""

NO_DATABASES = (
    "there are no databases in the data directory yet (start a session with Session-Buddy, or set "
    "akosha_agent_data_dir to the directory of its databases)"
)

_MAIN = re.compile(r"(reflection|knowledge_graph|knowledge_graph_[^/\0\ud800-\udfff]+)\.duckdb")


def database_of(file_name: str) -> str | None:
    """Return the database that a file belongs to (`reflection`, `knowledge_graph`, `knowledge_graph_{name}`), or None.

    A graph's name may contain any character except `/`, NUL and bytes that are not UTF-8: Session-Buddy cannot create
    files with those.

    >>> database_of("reflection.duckdb.wal"), database_of("akosha_sync_state.json")
    ('reflection', None)
    """
    for suffix in sorted(SIDECAR_SUFFIXES, key=len, reverse=True):
        if file_name.endswith(suffix):
            file_name = file_name.removesuffix(suffix)
            break
    match = _MAIN.fullmatch(file_name)
    return match[1] if match else None


def main_name(database: str) -> str:
    """Return the file name of a database's main file."""
    return f"{database}.duckdb"


def reader_of(storage_version: int | None) -> str:
    """Return the DuckDB that reads a file of this storage version: `DuckDB 2.0 or newer`."""
    if storage_version is None:
        return "the DuckDB that wrote it"
    if storage_version in READ_BY:
        return f"DuckDB {READ_BY[storage_version]} or newer"
    if storage_version < max(READ_BY):
        return f"a DuckDB that reads storage version {storage_version}"
    return f"a DuckDB newer than {READ_BY[max(READ_BY)]}, for storage version {storage_version}"


def storage_note(storage_version: int | None) -> str:
    """Return a note with the DuckDB that a file needs, "" if every DuckDB that Session-Buddy supports opens it."""
    if storage_version is None or storage_version <= _OLDEST_WRITER:
        return ""
    return (
        f"needs {reader_of(storage_version)} (storage version {storage_version}): "
        "Session-Buddy with an older DuckDB cannot open it"
    )


def is_requested(database: str, *, reflections: bool, knowledge_graph: bool) -> bool:
    """Return whether a request for reflections and/or knowledge graphs includes this database."""
    return reflections if database == REFLECTIONS else knowledge_graph


@dataclass(frozen=True, slots=True)
class FileStat:
    """The fields of `stat` that change when a file is written."""

    name: str
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The stats of a database's files and a digest of the main file's 12,288 header bytes.

    Equal fingerprints mean unchanged bytes: DuckDB alters size, mtime or header with every change of the content, and
    none of them otherwise. `header` is empty if the file could not be read.
    """

    files: tuple[FileStat, ...]
    header: str = ""

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def changed_at(self) -> datetime | None:
        """The latest modification time of the files; None if it is outside the range of a datetime."""
        try:
            return datetime.fromtimestamp(max(file.mtime_ns for file in self.files) / 1e9, UTC)
        except (ValueError, OverflowError, OSError):
            return None


Survey = dict[str, Fingerprint]
"""The databases in the data directory: name -> fingerprint."""
