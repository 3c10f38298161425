"""The agent's memory."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import Intent, Problem, Target, TargetRecord
from agent.domain.events import Event, SessionEnded, SyncFailed, SyncRequested, SyncResult, SyncSucceeded
from agent.domain.manifest import Manifest
from agent.ports.memories import MemoryLedger


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

    async def mark_owed(self, target: Target, databases: Collection[str]) -> None:
        """These changed (CHANGED)."""
        ...

    async def mark_unchanged(self, target: Target, fingerprints: Mapping[str, Fingerprint]) -> None:
        """These were touched, but their bytes are those delivered (UNCHANGED); remember how they look now."""
        ...

    async def record_problems(self, target: Target, problems: Mapping[str, Problem]) -> None:
        """These could not be copied; they stay owed."""
        ...

    async def forget(self, target: Target, databases: Collection[str]) -> None:
        """What was delivered of these is no longer there: they are owed whole (CHANGED), nothing is reused.

        Their memories are all new again, and they have no base.
        """
        ...

    async def begin(self, target: Target, intent: Intent) -> None:
        """An upload of `intent.databases` begins (STAGED). The same intent again is no move."""
        ...

    async def abandon(self, target: Target) -> None:
        """The upload that had begun will not be finished (ABANDONED); what it held is owed, nothing of it is staged."""
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
        """The manifest is in the bucket (COMMITTED): remember what was delivered and put the result into the outbox.

        Of the databases in its `memories.bases`, what was staged for it is delivered, and it is their base from now on.
        All else that was staged for the target is dropped.
        """
        ...

    async def deliver_memories(
        self,
        target: Target,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        """The target has the memories of the databases of its intent (COMMITTED), which is done with.

        Remember how the files looked (`fingerprints` has each of them) and put the result into the outbox.
        """
        ...

    async def adopt(self, target: Target, manifest: Manifest, result: SyncSucceeded) -> None:
        """The ledger knows nothing of this target, but the bucket does: take its newest manifest as delivered.

        Or it is the upload under way, whose manifest was found: then its memories are delivered as by `deliver`. Which
        memories another upload has is not known: no base follows from it, and nothing stays staged.
        """
        ...

    async def settle(self, target: Target | None, result: SyncResult) -> None:
        """The request ended without an upload. With a target: it has everything, nothing waits to be tried again."""
        ...

    async def reset(self, target: Target) -> None:
        """Forget attempts, failures and the time of the next try: the target is worth trying now."""
        ...

    async def announce(self, event: Event) -> None:
        """Put an event that is no result of a request into the history and the outbox."""
        ...

    async def outbox(self) -> Sequence[Event]:
        """Return results, and what was announced, that no bus has confirmed yet, oldest first."""
        ...

    async def confirm(self, event: Event) -> None:
        """A bus has confirmed a result (CONFIRMED), or what was announced."""
        ...

    async def republish_since(self, since: datetime) -> int:
        """Put results from then on into the outbox once more: the bus has lost them. Returns how many."""
        ...

    async def outcome(self, request_id: str) -> SyncResult | None:
        """Return the result of a request, if it has one."""
        ...

    async def add_to_history(self, event: Event) -> None:
        """Add an event to the history, for people to see."""
        ...

    async def find_event(self, event_id: str) -> Event | None:
        """Return an event of the history."""
        ...

    async def accept(self, event: SessionEnded) -> bool:
        """Say whether a session's end comes for the first time; every later one of its system, sender and id does not.

        One that does is open until a result that names its id in `caused_by` is written.
        """
        ...

    async def open_session_ends(self) -> Sequence[str]:
        """Return the ids of session ends that no result has answered yet, oldest first."""
        ...

    async def history(self, *, after: int = 0, limit: int = 1000) -> Sequence[HistoryEntry]:
        """Return the first `limit` events after a position, in order."""
        ...

    async def last_position(self) -> int:
        """Return the position of the newest event, 0 for none."""
        ...

    def on_history(self, listener: Callable[[], None]) -> None:
        """Call `listener`, on the event loop, after each write of this object that has added to the history."""
        ...

    async def size(self) -> int:
        """Return how many bytes it takes up on disk."""
        ...

    async def note(self, key: str, value: str) -> None:
        """Keep a short text for the status (the watcher's mode, the bus in use)."""
        ...

    async def notes(self) -> Mapping[str, str]:
        """Return all such texts."""
        ...

    def memories(self) -> MemoryLedger:
        """Return the part that remembers memories; it is closed with this."""
        ...

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        ...
