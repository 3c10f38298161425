"""What NATS has of each system: the newest stored event of each kind, and how many syncs have failed in a row.

A request lists the subjects of each kind of event; a request for 500 subjects reads their newest events. A system whose
newest result is a failure costs one more request, which counts the failures after its last success.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from agent.application.fleet.bucket import MOST_SYSTEMS, SYSTEMS_AT_ONCE, left_out
from agent.domain.events import (
    Event,
    IngestCompleted,
    IngestFailed,
    SyncFailed,
    SyncSkipped,
    SyncSucceeded,
    UploadVerified,
)
from agent.domain.naming import is_system_id, subject_matches
from agent.ports import EventReader, StreamEntry
from agent.ports.concurrency import gather_all

E = TypeVar("E", bound=Event)

KINDS: Mapping[str, type[Event]] = {
    "akosha.sync.*.succeeded": SyncSucceeded,
    "akosha.sync.*.skipped": SyncSkipped,
    "akosha.sync.*.failed": SyncFailed,
    "akosha.ingest.*.completed": IngestCompleted,
    "akosha.ingest.*.failed": IngestFailed,
    "akosha.archive.*.verified": UploadVerified,
}
"""The subjects that are read, and the class of their events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemEvents:
    """The newest stored event of each kind of one system.

    `failures` counts the syncs that have failed since the last one that did not, and `failing_since` is the time of the
    first; as far as the stream goes back. `problems`: subjects whose newest message is not a valid event, and why.
    """

    newest: Mapping[type[Event], StreamEntry] = field(default_factory=dict)
    failures: int = 0
    failing_since: datetime | None = None
    problems: tuple[str, ...] = ()

    def of(self, kind: type[E]) -> E | None:
        """Return the newest event of a kind, None if there is none."""
        entry = self.newest.get(kind)
        return entry.event if entry is not None and isinstance(entry.event, kind) else None

    def at(self, kind: type[Event]) -> datetime | None:
        """Return when the newest event of a kind happened; never later than the server stored it."""
        entry = self.newest.get(kind)
        return event_time(entry) if entry is not None and entry.event is not None else None

    @property
    def is_failing(self) -> bool:
        """Whether the newest result that counts is a failure."""
        failed = self.at(SyncFailed)
        return failed is not None and all(event_time(other) < failed for other in self.successes)

    @property
    def successes(self) -> list[StreamEntry]:
        """The newest success, and the newest skipped sync if it counts as one."""
        entries = [entry for kind in (SyncSucceeded, SyncSkipped) if (entry := self.newest.get(kind))]
        return [entry for entry in entries if is_success(entry.event)]

    def with_entry(self, entry: StreamEntry) -> "SystemEvents":
        """Return the events after a new, valid one; the same if the one of its kind is newer, or the same event."""
        assert entry.event is not None
        kind, at = type(entry.event), event_time(entry)
        known, known_at = self.of(kind), self.at(kind)
        if known is not None and known_at is not None and (known.id == entry.event.id or at < known_at):
            return self
        if is_success(known) and not is_success(entry.event):  # such a skip does not undo the one before
            return self
        changed = replace(self, newest={**self.newest, kind: entry})
        if kind is SyncFailed and changed.is_failing:
            return replace(changed, failures=self.failures + 1, failing_since=self.failing_since or at)
        return changed if changed.is_failing else replace(changed, failures=0, failing_since=None)


def is_success(event: Event | None) -> bool:
    """Return whether an event counts as a success: a delivery, or a sync that found nothing to send."""
    return isinstance(event, SyncSucceeded) or (isinstance(event, SyncSkipped) and event.found_nothing_to_send)


def event_time(entry: StreamEntry) -> datetime:
    """Return when the event happened. A clock that is ahead does not make it newer than it is."""
    assert entry.event is not None
    return min(entry.event.time, entry.stored_at)


class FleetEvents:
    """Reads the events of all systems."""

    def __init__(self, reader: EventReader) -> None:
        self.reader = reader

    @property
    def location(self) -> str:
        return self.reader.location

    async def read(self) -> tuple[dict[str, SystemEvents], tuple[str, ...]]:
        """Return the events by system ID, and sentences about what was left out. Raises BusError."""
        subjects, notes = await self._subjects()
        found = await self.reader.newest(list(subjects))
        systems: dict[str, SystemEvents] = {}
        for subject, (system_id, kind) in subjects.items():
            entry = found.get(subject)
            known = systems.get(system_id, SystemEvents())
            if entry is not None and isinstance(entry.event, kind):
                systems[system_id] = replace(known, newest={**known.newest, kind: entry})
            else:
                reason = entry.problem if entry is not None else "it cannot be read"
                problem = f"the newest message on {subject} is not a valid event: {reason}"
                systems[system_id] = replace(known, problems=(*known.problems, problem))
        slots = asyncio.Semaphore(SYSTEMS_AT_ONCE)

        async def counted(system_id: str) -> SystemEvents:
            async with slots:
                return await self._with_failures(systems[system_id])

        failing = [system_id for system_id, events in systems.items() if events.is_failing]
        counts = await gather_all([counted(system_id) for system_id in failing], "fleet-failures")
        return systems | dict(zip(failing, counts, strict=True)), notes

    async def _subjects(self) -> tuple[dict[str, tuple[str, type[Event]]], tuple[str, ...]]:
        """Return the subjects to read with their system and the class of their events."""
        found: dict[str, tuple[str, type[Event]]] = {}
        others: dict[str, None] = {}
        systems: set[str] = set()
        left: set[str] = set()
        for pattern, kind in KINDS.items():
            for subject in sorted(await self.reader.subjects(pattern)):
                system_id = subject.split(".")[2]
                if not is_system_id(system_id) or not subject_matches(pattern, subject):
                    others[system_id] = None
                elif system_id in systems or len(systems) < MOST_SYSTEMS:
                    systems.add(system_id)
                    found[subject] = system_id, kind
                else:
                    left.add(system_id)
        return found, left_out("subjects", list(others), len(left))

    async def _with_failures(self, events: SystemEvents) -> SystemEvents:
        """Return the events with the number of failures after the last result that is none."""
        after = max((entry.sequence for entry in events.successes), default=0)
        last = events.newest[SyncFailed]
        counted = await self.reader.first_after(last.subject, after)
        if counted is None or counted[0].event is None:
            return replace(events, failures=1, failing_since=event_time(last))
        return replace(events, failures=counted[1], failing_since=event_time(counted[0]))
