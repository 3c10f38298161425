"""Which files in the data directory are memory databases, and how a change of one is seen.

Session-Buddy's work in progress lives in sidecars: the main file of a first session has 12,288 bytes and no table. A
database is its main file *and* its sidecars; the main file alone may lack a whole session.
"""

import re
from dataclasses import dataclass

SIDECAR_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery", ".checkpoint.wal", ".recovery.wal")
"""What DuckDB adds to a main file's name: 1.5 and 2.0 write the first three (commits made during a checkpoint go to the
second), documents name the last two."""

READ_BY = {64: "1.0", 65: "1.2", 66: "1.3", 67: "1.4", 68: "1.5", 999: "2.0"}
"""The first DuckDB that reads a storage version, as the main file's header has it."""

_OLDEST_WRITER = 68
"""What every DuckDB reads that Session-Buddy accepts: it wants 1.5.3 or newer."""

REFLECTIONS = "reflection"
KNOWLEDGE_GRAPH = "knowledge_graph"

NO_DATABASES = (
    "there are no databases in the data directory yet (start a session with Session-Buddy, or set "
    "akosha_agent_data_dir to where its databases are)"
)

_MAIN = re.compile(r"(reflection|knowledge_graph|knowledge_graph_[^/\0\ud800-\udfff]+)\.duckdb")


def database_of(file_name: str) -> str | None:
    """Return the database that a file belongs to (`reflection`, `knowledge_graph`, `knowledge_graph_{name}`), or None.

    A graph's name may hold anything but `/`, NUL and bytes that are no UTF-8: such files Session-Buddy cannot make.

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
    """Return which DuckDB reads a file of this storage version: `DuckDB 2.0 or newer`."""
    if storage_version is None:
        return "the DuckDB that wrote it"
    if storage_version in READ_BY:
        return f"DuckDB {READ_BY[storage_version]} or newer"
    if storage_version < max(READ_BY):
        return f"a DuckDB that reads storage version {storage_version}"
    return f"a DuckDB newer than {READ_BY[max(READ_BY)]}, for storage version {storage_version}"


def storage_note(storage_version: int | None) -> str:
    """Say which DuckDB a file needs, where an older Session-Buddy may have one that cannot open it; "" elsewhere."""
    if storage_version is None or storage_version <= _OLDEST_WRITER:
        return ""
    return (
        f"needs {reader_of(storage_version)} (storage version {storage_version}): "
        "Session-Buddy with an older one cannot open it"
    )


def is_requested(database: str, *, reflections: bool, knowledge_graph: bool) -> bool:
    """Say whether a request for reflections and/or knowledge graphs asks for this database."""
    return reflections if database == REFLECTIONS else knowledge_graph


@dataclass(frozen=True, slots=True)
class FileStat:
    """What `stat` says of one file: enough to see a change, nothing read."""

    name: str
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A database as seen from outside: its files' stats and a digest of the main file's 12,288 header bytes.

    Equal fingerprints mean unchanged bytes: DuckDB alters size, mtime or header with every real change and none of
    them otherwise. `header` is empty where the file could not be read.
    """

    files: tuple[FileStat, ...]
    header: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


Survey = dict[str, Fingerprint]
"""What lies in the data directory: database -> fingerprint."""
