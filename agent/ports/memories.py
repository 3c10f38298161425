"""Memories on their way: read from a copy, given to Akosha, remembered as delivered."""

from collections.abc import AsyncGenerator, Collection, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Literal, Protocol

from agent.domain.delivery_state import Target
from agent.domain.memories import Kind, Memory, RowState


class MemorySource(Protocol):
    """Where memories are read from, one page after the other. Memory stays flat, whatever the size."""

    def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        """Yield all rows, as they are seen, in pages of at most a few hundred. Raises SnapshotError.

        A page may be empty: a long stretch of what is no memory has no rows to show.
        """
        ...

    def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        """Yield these rows of the page yielded last, whole, in the order asked for. Raises SnapshotError."""
        ...


class MemoryReader(Protocol):
    """Reads a staged copy of a database, in a process of its own. Never a live file."""

    def open(self, copy: Path, database: str, *, zone: tzinfo) -> AbstractAsyncContextManager[MemorySource]:
        """Open the copy of a database's main file, its sidecars beside it; its bytes stay as they are.

        Naive times in it are of `zone`. Raises SnapshotError where the engine cannot read it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMemory:
    """A memory as it will be sent; `body` are its bytes on the wire."""

    row: RowState
    memory_id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server takes. `version` changes when what it refused may be worth another try (software, tools).

    `kinds` that it takes at all; those of `need_embedding` only with one. `tells_known`: kinds of which it always says
    that a memory was there already; the tool of another kind may not.
    """

    version: str
    kinds: frozenset[Kind]
    need_embedding: frozenset[Kind]
    reports_known: frozenset[Kind] = frozenset({"conversation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """What became of one batch: how many were `stored`, which were there already, and why others were refused.

    `existing` are positions in the batch, and `refused` maps positions to the server's reason.
    """

    stored: int
    existing: frozenset[int] = frozenset()
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def known(self) -> int:
        """How many were there already."""
        return len(self.existing)


class MemorySink(Protocol):
    """Akosha, or a stand-in. Every failure is a SinkError that says transient or not, with the cure."""

    @property
    def location(self) -> str:
        """Where it is, for people. Never a secret."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes of requests that were sent so far, since it was made."""
        ...

    @property
    def sessions(self) -> int:
        """How many sessions were begun, since it was made. Within one, the server keeps what it was given."""
        ...

    @property
    def health_version(self) -> str:
        """What its health check said last of its version, without a session; empty where it says nothing."""
        ...

    async def is_available(self) -> bool:
        """Say within 1 s whether it may be reached: False only for a definite no. Never raises.

        A refused connection, no route, a name that does not exist, or its own word that it is not healthy are a no; a
        time-out or a look-up that failed for the moment is not.
        """
        ...

    async def connect(self) -> Capabilities:
        """Begin, or make sure of, a session and return what the server takes. Raises SinkError."""
        ...

    def pack(self, memory: Memory, system_id: str) -> PackedMemory:
        """Return a memory of a system as it will be sent."""
        ...

    async def store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        """Send one batch; its size is the caller's choice. When it returns, what is not refused is in Akosha.

        Storing the same again changes nothing. Raises SinkError: then some of the batch may have arrived.
        """
        ...

    async def aclose(self) -> None:
        """End the session, close connections. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """A memory that its target does not have: `waiting` or `refused`, why, and since when."""

    row: RowState
    state: Literal["waiting", "refused"]
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCounts:
    """How many memories of a target were delivered; how many wait or were refused, by reason."""

    delivered: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


class MemoryLedger(Protocol):
    """Remembers, per target, which state of which row was delivered. A write is on disk when it returns."""

    async def lacking(self, target: Target, page: Sequence[RowState]) -> Sequence[RowState]:
        """Return those of the page that the target neither has nor has refused in this state, in order."""
        ...

    async def delivered(self, target: Target, batch: Collection[RowState]) -> None:
        """The target has these."""
        ...

    async def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        """The target does not have these. What is `waiting` stays lacking; what was `refused` is no longer lacking.

        Returns how many of them were not held in this state of theirs (digest) before; `since` of the others stays.
        """
        ...

    async def release(self, target: Target, database: str, there: Container[tuple[str, Kind, str]]) -> None:
        """Of the rows of a database only these (`RowState.key`) are there: none of the others is held any more."""
        ...

    async def counts(self, target: Target) -> MemoryCounts: ...

    async def held(self, target: Target, *, limit: int) -> Sequence[HeldMemory]:
        """Return the first `limit` memories that wait or were refused: the refused ones first."""
        ...

    async def update_version(self, target: Target, version: str) -> frozenset[str]:
        """The target is of this version now. If it was another: what it refused is lacking again.

        Returns the databases with memories that are held back and worth another look; nothing where nothing changed.
        """
        ...

    async def stage(self, target: Target, upload_id: str, batch: Collection[RowState]) -> None:
        """These are in the upload's memories.json: delivered once `Ledger` knows the upload as delivered or adopted."""
        ...

    async def unstage(self, target: Target) -> None:
        """What was staged for uploads that were not delivered was not delivered."""
        ...

    async def bases(self, target: Target) -> Mapping[str, str]:
        """Return database -> the last delivered upload whose memories.json had its rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenMemories:
    """What a finished memories.json is: its size, its SHA-256, and how many memories it holds."""

    size: int
    sha256: str
    count: int


class MemoriesDraft(Protocol):
    """A memories.json in the making, in a private directory. What it holds in memory is bounded."""

    async def add(self, memory: Memory) -> None:
        """Append a memory. Raises SnapshotError where there is no room, or where JSON cannot hold it."""
        ...

    async def flush(self) -> None:
        """Write all that was added so far, so that what is wrong with it shows. Raises SnapshotError."""
        ...

    async def finish(self) -> WrittenMemories:
        """Write the end; nothing is added after it. Raises SnapshotError."""
        ...

    def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the finished file's bytes, in pieces of bounded size. Raises StateError where it cannot be read."""
        ...


class MemoriesFile(Protocol):
    """memories.json as an upload carries it and as Akosha's ingestion reads it."""

    def write(self, system_id: str) -> AbstractAsyncContextManager[MemoriesDraft]:
        """Begin a new file for the memories of a system; it is removed when the block ends. Raises SnapshotError.

        What is added in the same order gives the same bytes.
        """
        ...

    def open(self, path: Path, system_id: str) -> MemorySource:
        """Return the memories in a file of that system, equal to those that were added.

        Its `pages` raise WireError, saying what is wrong, for anything that `write` does not write.
        """
        ...
