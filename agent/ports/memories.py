"""Reading memories, sending them to Akosha, and recording their delivery."""

from collections.abc import AsyncGenerator, Collection, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Literal, Protocol

from agent.domain.delivery_state import Target
from agent.domain.memories import Kind, Memory, RowState
from agent.domain.upload_parts import Compression


class MemorySource(Protocol):
    """Reads memories page by page, with constant memory use."""

    def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        """Yield all rows, without their content, in pages of at most a few hundred. Raises SnapshotError.

        A page may be empty, if many consecutive rows are not memories.
        """
        ...

    def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        """Yield the complete memories of rows of the last page, in the order of `wanted`. Raises SnapshotError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """How many rows a database has, how many of them are new, and the bytes of these: text and embeddings."""

    rows: int
    new_rows: int
    new_bytes: int


class DatabaseSource(MemorySource, Protocol):
    """The memories in a copy of a database. Its rows can be compared with a row set.

    A row set is a file with a hash of each row that a target has. Rows with equal hashes have equal digests.
    """

    @property
    def known_rows(self) -> Path:
        """Where the row set of the target is expected, in a private directory that may not exist yet."""
        ...

    async def compare(self, main_sha256: str = "") -> RowDifference | None:
        """Find the rows that are not in the file `known_rows`; all if there is none. `pages` yields only these then.

        `main_sha256`: digest of the copy's main file. With it, rows that are still as they were in the same main file
        are not read.

        Return None if the rows cannot be compared: then `pages` yields all rows. Raises SnapshotError.
        """
        ...

    async def row_set(self, leave_out: Collection[tuple[Kind, str]] | None = None) -> Path:
        """Return the file with the hashes of all rows.

        With `leave_out`, it has no rows with a kind and ID in there, and none that share kind and ID with another row:
        the ledger has one state for them, so it does not know whether a server has each.

        Call it after `compare` has found a difference. The file is removed when the source is closed. Raises
        SnapshotError, also if there are memories that DuckDB cannot read.
        """
        ...


class MemoryReader(Protocol):
    """Reads a staged copy of a database in a separate process. It never reads an original file."""

    def open(self, copy: Path, database: str, *, zone: tzinfo) -> AbstractAsyncContextManager[DatabaseSource]:
        """Open a copy of a database's main file, with its sidecars in the same directory. The files are not modified.

        Naive times in it are in `zone`. Raises SnapshotError if DuckDB cannot read it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMemory:
    """A memory ready to be sent; `body` is its encoded form."""

    row: RowState
    memory_id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server accepts.

    `version` changes when refused memories may succeed in another try (server software, tools). `kinds` are those that
    the server accepts, those in `need_embedding` only with an embedding. `reports_known` are the kinds for which the
    server always reports that a memory already existed; for other kinds its tool may not.
    """

    version: str
    kinds: frozenset[Kind]
    need_embedding: frozenset[Kind]
    reports_known: frozenset[Kind] = frozenset({"conversation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """The result of one batch: the number of newly `stored` memories, those that already existed, and those refused.

    `existing` are positions in the batch; `refused` maps positions to the server's reason.
    """

    stored: int
    existing: frozenset[int] = frozenset()
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def known(self) -> int:
        """The number of memories that already existed."""
        return len(self.existing)


class MemorySink(Protocol):
    """An Akosha server, or a substitute. Every failure is a SinkError, marked transient or not, with a hint."""

    @property
    def location(self) -> str:
        """The address for people. Contains no secrets."""
        ...

    @property
    def bytes_sent(self) -> int:
        """The number of bytes of requests sent by this object so far."""
        ...

    @property
    def sessions(self) -> int:
        """The number of sessions started by this object. Within a session, the server keeps what it stored."""
        ...

    @property
    def health_version(self) -> str:
        """The server's version from its last health check, which needs no session; empty if it reports none."""
        ...

    async def is_available(self) -> bool:
        """Return within 1 s whether the server may be reachable: False only if it certainly is not. Never raises.

        False: a refused connection, no route, a name that does not exist, or a server that reports that it is
        unhealthy. True: also after a timeout or a temporary failure of name resolution.
        """
        ...

    async def connect(self) -> Capabilities:
        """Start a session, or check the current one, and return the server's capabilities. Raises SinkError."""
        ...

    def pack(self, memory: Memory, system_id: str) -> PackedMemory:
        """Encode a memory of a system for sending."""
        ...

    async def store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        """Send a batch of any size. When it returns, Akosha has all memories that it did not refuse.

        Storing a memory again changes nothing. Raises SinkError: then a part of the batch may have been stored.
        """
        ...

    async def aclose(self) -> None:
        """End the session and close connections. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """A memory that its target does not have: `waiting` or `refused`, the reason, and since when."""

    row: RowState
    state: Literal["waiting", "refused"]
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCounts:
    """Counts of a target's memories: delivered; and waiting and refused, by reason."""

    delivered: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


class MemoryLedger(Protocol):
    """Records which rows each target has. A write is on disk when it returns.

    It knows the state of each row that was sent to a server: delivered, waiting or refused. For a server, a row set
    only spares looking at each row: all its rows were delivered. For uploads, row sets are the only record.
    """

    async def lacking(self, target: Target, page: Sequence[RowState]) -> Sequence[RowState]:
        """Return the rows of the page that the target neither has nor has refused in this state, in order."""
        ...

    async def delivered(self, target: Target, batch: Collection[RowState]) -> None:
        """Record that the target has these rows."""
        ...

    async def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        """Record memories that the target does not have: `waiting` ones stay lacking, `refused` ones are not lacking.

        Return the number of those that were not held with the same digest before; the others keep their `since`.
        """
        ...

    async def release(self, target: Target, database: str, present: Container[tuple[str, Kind, str]]) -> None:
        """Remove held memories of a database whose rows (`RowState.key`) are not in `present`: they were deleted."""
        ...

    async def counts(self, target: Target) -> MemoryCounts: ...

    async def held(self, target: Target, *, limit: int) -> Sequence[HeldMemory]:
        """Return up to `limit` waiting and refused memories, the refused ones first."""
        ...

    async def update_version(self, target: Target, version: str) -> frozenset[str]:
        """Record the target's version. If it changed, the memories that it refused are lacking again.

        Return the databases with held memories that should be tried again; none if the version did not change.
        """
        ...

    async def held_keys(self, target: Target, database: str, *, limit: int) -> Sequence[tuple[Kind, str]]:
        """Return kind and ID of up to `limit` waiting and refused memories of a database."""
        ...

    async def known_rows(self, target: Target, database: str, file: Path) -> bool:
        """Write the set of the rows of a database that the target has to a file. Return False if it is unknown.

        Raises StagingFull, StateError if the file cannot be written.
        """
        ...

    async def set_rows(self, target: Target, database: str, file: Path) -> None:
        """Record that the target has the rows in the file. Raises SnapshotError if it cannot be read."""
        ...

    async def stage(self, target: Target, upload_id: str, database: str, file: Path) -> None:
        """Record the rows of a database in an upload.

        When it is delivered or adopted, and can be the base of the database, the target has these rows.
        Raises SnapshotError if the file cannot be read.
        """
        ...

    async def unstage(self, target: Target) -> None:
        """Drop the rows that were staged for uploads that were not delivered."""
        ...

    async def bases(self, target: Target) -> Mapping[str, str]:
        """Return database -> its base: the last delivered upload whose rows are known (`Manifest.base_of`)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenMemories:
    """A finished memories.json: `raw_size` and `sha256` are those of the uncompressed JSON, `count` its memories."""

    raw_size: int
    stored_size: int
    sha256: str
    compression: Compression
    count: int


class MemoriesDraft(Protocol):
    """A memories.json that is being written to a private file, with bounded memory use."""

    async def add(self, memory: Memory) -> None:
        """Append a memory. Raises SnapshotError if the disk is full, or if JSON cannot represent the memory."""
        ...

    async def flush(self) -> None:
        """Write all memories added so far, so that their errors are raised now. Raises SnapshotError."""
        ...

    async def finish(self) -> WrittenMemories:
        """Complete the file; nothing can be added afterwards. Raises SnapshotError."""
        ...

    def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the `stored_size` bytes of the finished file, in pieces of bounded size.

        Raises StateError if it cannot be read.
        """
        ...


class MemoriesFile(Protocol):
    """Writes and reads memories.json, in the format of Akosha's ingestion. It may be compressed while it is written."""

    def write(self, system_id: str) -> AbstractAsyncContextManager[MemoriesDraft]:
        """Create a file for the memories of a system, which is removed when the block ends. Raises SnapshotError.

        The same memories in the same order give the same bytes.
        """
        ...

    def open(self, path: Path, system_id: str) -> MemorySource:
        """Return the memories in an uncompressed file of that system, equal to those that were added.

        `pages` raises WireError for a file that `write` cannot have written.
        """
        ...
