"""The ledger: the agent's record of targets, deliveries and events."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import Intent, Problem, Target, TargetRecord
from agent.domain.events import Event, SessionEnded, SyncFailed, SyncRequested, SyncResult, SyncSucceeded
from agent.domain.manifest import Manifest
from agent.ports.memories import MemoryLedger
from agent.ports.objects import OpenPut, PutJournal


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An event in the ledger's history: positions increase and are never reused."""

    position: int
    event: Event


class Ledger(Protocol):
    """Records what each target has, what is owed, and the history. A write is on disk when it returns.

    State transitions follow `agent.domain.delivery_state`; one that is not in its table raises StateError and writes
    nothing.
    """

    async def record(self, target: Target) -> TargetRecord:
        """Return the record of a target."""
        ...

    async def mark_owed(self, target: Target, databases: Collection[str]) -> None:
        """Record that databases changed (CHANGED)."""
        ...

    async def mark_unchanged(self, target: Target, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Record new fingerprints of databases that still have the delivered bytes (UNCHANGED)."""
        ...

    async def record_problems(self, target: Target, problems: Mapping[str, Problem]) -> None:
        """Record that databases could not be copied; they are owed."""
        ...

    async def forget(self, target: Target, databases: Collection[str]) -> None:
        """Record that the target lost databases (CHANGED): they are owed completely, and nothing is reused.

        All their memories count as not delivered, and they have no base.
        """
        ...

    async def begin(self, target: Target, intent: Intent) -> None:
        """Record that an upload of `intent.databases` starts (STAGED). Repeating the same intent changes nothing.

        An intent with the ID of the upload in progress, and with all of its databases, replaces it: the upload goes on
        with other bytes. Its open puts stay.
        """
        ...

    async def abandon(self, target: Target) -> None:
        """Record that the upload in progress will not be finished (ABANDONED).

        Its databases are owed, and its staged memories and open puts are dropped.
        """
        ...

    def put_journal(self, target: Target, key: str) -> PutJournal:
        """Return the journal of the puts of a key. Its entry is dropped when the upload in progress ends.

        That is when the upload is delivered, adopted or abandoned.
        """
        ...

    async def open_puts(self, target: Target) -> Sequence[OpenPut]:
        """Return the open puts of a target, by key."""
        ...

    async def count_attempt(
        self, target: Target, request: SyncRequested, *, attempts: int, retry_at: datetime, error: str
    ) -> None:
        """Record that an attempt failed and another follows at `retry_at` (RETRY)."""
        ...

    async def give_up(
        self, target: Target, *, error: str, failures: int, retry_at: datetime | None, result: SyncFailed | None
    ) -> None:
        """Record that the request failed at this target (ABANDONED). `result` is None if the request was forwarded."""
        ...

    async def deliver(
        self,
        target: Target,
        manifest: Manifest,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        """Record a delivered upload, whose manifest is in the bucket (COMMITTED), and put the result into the outbox.

        For the databases in `Manifest.base_of`, the memories staged for it become delivered, and it becomes their
        base. Everything else that was staged for the target is dropped.
        """
        ...

    async def deliver_memories(
        self,
        target: Target,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        """Record that the target has the memories of the intent's databases (COMMITTED), and clear the intent.

        Record the fingerprints (`fingerprints` has all of these databases) and put the result into the outbox.
        """
        ...

    async def adopt(self, target: Target, manifest: Manifest, result: SyncSucceeded) -> None:
        """Record a manifest found in the bucket as delivered.

        Either the ledger has no record of the target, and `manifest` is the newest. Or it is the manifest of the upload
        in progress: then its memories become delivered as by `deliver`. It is unknown which memories any other upload
        has. It is not used as a base; staged memories are dropped.
        """
        ...

    async def settle(self, target: Target | None, result: SyncResult) -> None:
        """Record a result without an upload. With a target: it lacks nothing, and its pending retry is cleared."""
        ...

    async def reset(self, target: Target) -> None:
        """Clear attempts, failures and the retry time, so that the target is tried now."""
        ...

    async def announce(self, event: Event, *, notes: Mapping[str, str] | None = None) -> None:
        """Add an event that is not the result of a request to the history and the outbox.

        Store notes, as `note` does, in the same transaction.
        """
        ...

    async def outbox(self) -> Sequence[Event]:
        """Return the results and announced events that no bus has confirmed yet, oldest first."""
        ...

    async def confirm(self, event: Event) -> None:
        """Record that a bus has confirmed a result (CONFIRMED) or an announced event."""
        ...

    async def newest_confirmed(self) -> SyncResult | None:
        """Return the newest result that a bus has confirmed, None if there is none."""
        ...

    async def republish_since(self, since: datetime) -> int:
        """Put results and announced events since that time into the outbox again, because the bus has lost them.

        Return their number.
        """
        ...

    async def outcome(self, request_id: str) -> SyncResult | None:
        """Return the result of a request, None if it has none."""
        ...

    async def add_to_history(self, event: Event) -> None:
        """Add an event to the history."""
        ...

    async def find_event(self, event_id: str) -> Event | None:
        """Return an event of the history, None if it is not there."""
        ...

    async def accept(self, event: SessionEnded) -> bool:
        """Record a session's end. Return False if one with the same system, sender and ID is recorded.

        A new one stays open until a result with its ID in `caused_by` is written.
        """
        ...

    async def open_session_ends(self) -> Sequence[str]:
        """Return the IDs of the open session ends, which no result has answered yet, oldest first."""
        ...

    async def history(self, *, after: int = 0, limit: int = 1000) -> Sequence[HistoryEntry]:
        """Return up to `limit` events after a position, in order."""
        ...

    async def past_events(
        self, *, before: int | None, limit: int, types: Collection[type[Event]]
    ) -> Sequence[HistoryEntry]:
        """Return up to `limit` events of these types before a position (None: up to the newest), newest first."""
        ...

    async def last_position(self) -> int:
        """Return the position of the newest event, 0 for none."""
        ...

    def on_history(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the event loop after each write of this object that added to the history."""
        ...

    async def size(self) -> int:
        """Return the ledger's size on disk in bytes."""
        ...

    async def note(self, key: str, value: str) -> None:
        """Store a short text for the status (the watcher's mode, the bus in use)."""
        ...

    async def notes(self) -> Mapping[str, str]:
        """Return all notes."""
        ...

    def memories(self) -> MemoryLedger:
        """Return the ledger of memories, which is closed with this one."""
        ...

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        ...
