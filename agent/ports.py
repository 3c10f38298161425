"""What the core asks of the world, as promises. Adapters keep them; `tests/contracts` holds every adapter to them."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent.domain.databases import Fingerprint, Survey
from agent.domain.events import Event, SyncFailed, SyncRequested, SyncResult, SyncSucceeded
from agent.domain.manifest import Compression, Manifest
from agent.domain.parts import RawFile
from agent.domain.states import Intent, Problem, Target, TargetRecord

Progress = Callable[[int], None]
"""Told, on the event loop, how many more bytes have moved. Cheap, never raises."""


class Clock(Protocol):
    """The only source of time. Limits on an operation (`asyncio.timeout`) run on the loop's own monotonic clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. It may jump either way."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds; at once where they are not positive."""
        ...


# ---------------------------------------------------------------------------------------------------------- events


class Message(Protocol):
    """One delivery of an event to one subscription. Exactly one of `ack` and `nak` ends it; a second call does nothing."""

    @property
    def event(self) -> Event: ...

    async def ack(self) -> None:
        """Done: it is not delivered again."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Deliver it again after `delay` seconds. Later events of the subscription wait behind it."""
        ...

    async def in_progress(self) -> None:
        """Still at work: the time to ack starts anew."""
        ...


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """Take no more events; a handler at work is cancelled, its event unacked. Idempotent."""
        ...


class EventBus(Protocol):
    """At least once, in order per subject.

    One event at a time per subscription; the next comes after an ack. A handler that raises, or returns with neither
    ack nor nak, means nak; one that stays silent for longer than the bus's ack wait is cancelled and its event
    delivered again.
    """

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject. When it returns, the bus has it; else it raises and may have it."""
        ...

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """Hand over events whose subject matches `pattern` (`*` a token, `>` the rest).

        With a `durable` name, what is not acked when the subscription stops waits for the next of that name, and so
        does what is published in between. Without one, the subscription sees what is published from now on.
        """
        ...

    async def aclose(self) -> None:
        """Stop all subscriptions. Idempotent."""
        ...


# --------------------------------------------------------------------------------------------------------- objects


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store: its key, its size in bytes, and the metadata put with it (empty in a listing)."""

    key: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """Keys and bytes. Every failure is a StoreError that says transient or not, with the cure.

    Keys are `/`-separated plain names; listing is in key order. A single request may be retried by the store's client;
    attempts as a whole are the caller's.
    """

    @property
    def location(self) -> str:
        """Where this is, for people: `s3://bucket at host` or `file:///dir`. Never a secret."""
        ...

    async def is_available(self) -> bool:
        """Say within 1 s whether the store can be reached at all. Never raises."""
        ...

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
    ) -> StoredObject:
        """Stream `body` under `key`; all or nothing, replacing what was there; durable and checked when it returns.

        Holds a bounded number of parts of `part_bytes` in memory. Cancelled or failed, it leaves nothing behind that
        it may remove. `progress` is told as bytes leave.
        """
        ...

    async def copy(self, source: str, key: str, *, expected: StoredObject) -> StoredObject:
        """Copy on the store's side, no bytes through here, and check the copy's size and metadata against `expected`.

        `expected.metadata` becomes the copy's. Raises NoSuchObject for a missing source, CopyUnsupported where the
        store cannot, or did not really, or the source is not what is expected.
        """
        ...

    async def head(self, key: str) -> StoredObject:
        """Return the object without its bytes. Raises NoSuchObject."""
        ...

    def get(self, key: str) -> AsyncIterator[bytes]:
        """Stream the object's bytes. Raises NoSuchObject."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        """List objects under `prefix` in key order, those after `start_after` only."""
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete; what is not there is no error. Raises NotPermitted."""
        ...

    async def sweep(self, prefix: str) -> int:
        """Remove unfinished puts that a killed process left under `prefix`; return how many. Raises NotPermitted."""
        ...

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        ...


# ------------------------------------------------------------------------------------------------------- snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A right copy of one database: main file and sidecars as they were at one moment, in a folder of our own.

    `fingerprint` was taken before the copying began, so that any later change shows. `rows` counts the rows per table
    where the copy was `verified`: opened and read through by the engine.
    """

    database: str
    folder: Path
    files: tuple[RawFile, ...]
    fingerprint: Fingerprint
    header_iteration: int | None
    verified: bool
    unverified_reason: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)


class SnapshotTaker(Protocol):
    """Copies databases that another process is writing. Never opens, locks or writes the originals."""

    async def survey(self) -> Survey:
        """Return the fingerprints of all databases in the data directory; reads 12,288 bytes of each, no more.

        Empty where the directory is missing. What is no regular file is in it too, to be complained about by `take`.
        """
        ...

    async def take(self, database: str) -> Snapshot:
        """Copy, hash and verify one database. Raises SnapshotError, transient where the file was too busy."""
        ...

    async def discard(self, snapshot: Snapshot) -> None:
        """Remove the copy."""
        ...

    async def sweep(self) -> None:
        """Remove every copy, also those of a process that was killed."""
        ...


class Compressor(Protocol):
    """Reads a staged file as it will be stored."""

    @property
    def compression(self) -> Compression:
        """What it does, as metadata and manifest name it."""
        ...

    def stream(self, path: Path) -> AsyncIterator[bytes]:
        """Yield the stored form of the file, in pieces of bounded size, worked out off the event loop."""
        ...


# ---------------------------------------------------------------------------------------------------------- ledger


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An event as the ledger remembers it: `position` grows, and is never used twice."""

    position: int
    event: Event


class Ledger(Protocol):
    """The agent's memory: what each target has, what is owed, what happened. A write is on disk when it returns.

    Moves follow `domain/states.py`; one that is not in its table raises StateError and writes nothing.
    """

    async def record(self, target: Target) -> TargetRecord:
        """Return all that is known of a target."""
        ...

    async def owe(self, target: Target, databases: Collection[str]) -> None:
        """These changed (CHANGED)."""
        ...

    async def refresh(self, target: Target, fingerprints: Mapping[str, Fingerprint]) -> None:
        """These were touched, but their bytes are those delivered (UNCHANGED); remember how they look now."""
        ...

    async def trouble(self, target: Target, problems: Mapping[str, Problem]) -> None:
        """These could not be copied; they stay owed."""
        ...

    async def begin(self, target: Target, intent: Intent) -> None:
        """An upload of `intent.databases` begins (STAGED). The same intent again is no move."""
        ...

    async def abandon(self, target: Target) -> None:
        """The upload that had begun will not be finished (ABANDONED); what it held is owed."""
        ...

    async def count_attempt(
        self, target: Target, request: SyncRequested, *, attempts: int, retry_at: datetime, error: str
    ) -> None:
        """An attempt failed, another follows at `retry_at` (RETRY)."""
        ...

    async def give_up(
        self, target: Target, *, error: str, failures: int, retry_at: datetime | None, result: SyncFailed | None
    ) -> None:
        """The request failed at this target (ABANDONED). `result` is None where it was forwarded."""
        ...

    async def deliver(
        self,
        target: Target,
        manifest: Manifest,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        """The manifest is in the bucket (COMMITTED): remember what was delivered and put the result into the outbox."""
        ...

    async def adopt(self, target: Target, manifest: Manifest, result: SyncSucceeded) -> None:
        """The ledger knows nothing of this target, but the bucket does: take its newest manifest as delivered."""
        ...

    async def settle(self, target: Target | None, result: SyncResult) -> None:
        """The request ended without an upload. With a target: it has everything, nothing waits to be tried again."""
        ...

    async def reset(self, target: Target) -> None:
        """Forget attempts, failures and the time of the next try: the target is worth trying now."""
        ...

    async def outbox(self) -> Sequence[SyncResult]:
        """Return results that no bus has confirmed yet, oldest first."""
        ...

    async def confirm(self, result: SyncResult) -> None:
        """A bus has confirmed the result (CONFIRMED)."""
        ...

    async def outcome(self, request_id: str) -> SyncResult | None:
        """Return the result of a request, if it has one."""
        ...

    async def remember(self, event: Event) -> None:
        """Add an event to the history, for people to see."""
        ...

    async def history(self, *, after: int = 0, limit: int = 1000) -> Sequence[HistoryEntry]:
        """Return the first `limit` events after a position, in order."""
        ...

    async def last_position(self) -> int:
        """Return the position of the newest event, 0 for none."""
        ...

    async def note(self, key: str, value: str) -> None:
        """Keep a short text for the status (the watcher's mode, the bus in use)."""
        ...

    async def notes(self) -> Mapping[str, str]:
        """Return all such texts."""
        ...

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        ...


# --------------------------------------------------------------------------------------------------------- methods


class Reporter(Protocol):
    """Hears how far a sync is. Cheap; never raises."""

    def phase(self, name: str, total_bytes: int) -> None:
        """A phase (`snapshot`, `upload`) begins, in which so many bytes are to move."""
        ...

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A target has received an upload; what the ledger must remember of it, and the result to tell."""

    manifest: Manifest
    fingerprints: Mapping[str, Fingerprint]
    problems: Mapping[str, Problem]
    result: SyncSucceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """The target has everything already; `why` in words."""

    why: str


class SyncMethod(Protocol):
    """A way to deliver to one target."""

    @property
    def name(self) -> str:
        """The method's name on routes and subjects: cloud, http, or another."""
        ...

    @property
    def target(self) -> Target: ...

    async def is_available(self) -> bool:
        """Say within 1 s whether an attempt makes sense. Never raises."""
        ...

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        """Deliver what the target lacks of what the request asks for.

        Writes the ledger up to and including the intent; what follows the delivery is the caller's. Raises SyncError,
        transient or permanent, with a hint; cancelled, it cleans up. Never returns a failure as a value.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads. Idempotent."""
        ...


# ---------------------------------------------------------------------------------------------------------- inputs


class Watch(Protocol):
    """Tells that files in a directory changed. May miss some; the periodic pass is there for those."""

    @property
    def mode(self) -> str:
        """How it watches now, for the status: `native`, `polling (why)`, `waiting for the directory`."""
        ...

    def changes(self) -> AsyncIterator[frozenset[str]]:
        """Yield sets of names of files that changed; never ends by itself, survives all that happens to the directory."""
        ...


class Spool(Protocol):
    """Notes that other processes of this user leave in the state directory."""

    async def waiting(self) -> Sequence[tuple[str, Event]]:
        """Return (note, event) for every note, oldest first. One that cannot be read is set aside and logged."""
        ...

    async def remove(self, note: str) -> None:
        """The note has been taken up."""
        ...
