"""The fleet: reads its sources concurrently and merges what they know. A source that fails does not hide the others."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.application.fleet.bucket import MOST_SYSTEMS, BucketFacts, FleetBucket
from agent.application.fleet.events import KINDS, FleetEvents, SystemEvents
from agent.application.fleet.merge import BUCKET, NATS, Condition, FleetSystem, by_severity, merged
from agent.domain.errors import AkoshaError
from agent.domain.events import Event
from agent.ports import Clock, Handler, StreamEntry
from agent.ports.concurrency import gather_all

Cursors = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns system ID -> the newest upload that this machine's `react` has finished. Raises AkoshaError."""

LEDGER = "ledger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of the fleet. `location` is empty if it is not configured; `hint` then names the setting.

    `error`: why it could not be read, else "". `notes`: sentences about what was left out, or does not arrive live.
    """

    name: str
    location: str = ""
    systems: int = 0
    error: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """The fleet as of a time: the worst systems first."""

    time: datetime
    sources: tuple[Source, ...]
    systems: tuple[FleetSystem, ...]

    @property
    def is_fine(self) -> bool:
        """Whether there is a system, all are fine, and every configured source was read. A wrong bucket has none."""
        all_fine = all(one.condition is Condition.FINE for one in self.systems)
        return bool(self.systems) and all_fine and not any(source.error for source in self.sources)


@dataclass(slots=True)
class Fleet:
    """The systems of a bucket and of a NATS server; either may be None, if it is not configured.

    After `read`, `read_systems` and `take` keep the fleet up to date, and `report` shows it. What a source has shown is
    kept while it cannot be read again.
    """

    bucket: FleetBucket | None
    events: FleetEvents | None
    cursors: Cursors
    clock: Clock
    overdue: timedelta

    _facts: dict[str, BucketFacts] = field(default_factory=dict, init=False)
    _events: dict[str, SystemEvents] = field(default_factory=dict, init=False)
    _ingested: Mapping[str, str] = field(default_factory=dict, init=False)
    _sources: dict[str, Source] = field(default_factory=dict, init=False)
    _meanwhile: list[Event] | None = field(default=None, init=False)
    """The events that are taken while the stored ones are read; these may have been read before those were stored."""
    _reading_bucket: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _is_live: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        bucket = "akosha_cloud_bucket and akosha_cloud_endpoint"
        self._sources[BUCKET] = Source(name=BUCKET, hint=bucket)
        if self.bucket is not None:
            self._sources[BUCKET] = Source(name=BUCKET, location=self.bucket.location)
        self._sources[NATS] = Source(name=NATS, hint="akosha_agent_nats_url")
        if self.events is not None:
            self._sources[NATS] = Source(name=NATS, location=self.events.location)

    async def read(self) -> None:
        """Read all sources. Errors are in the report."""
        await gather_all([self.read_bucket(), self.read_events(), self._read_cursors()], "fleet-source")

    async def read_bucket(self) -> None:
        """Read the bucket again."""
        if self.bucket is None:
            return
        error, notes = "", tuple[str, ...]()
        try:
            async with self._reading_bucket:
                self._facts, notes = await self.bucket.read()
        except AkoshaError as raised:
            error = str(raised)
        self._sources[BUCKET] = replace(self._sources[BUCKET], error=error, notes=notes)

    async def read_events(self) -> None:
        """Read the stored events again."""
        if self.events is None:
            return
        error, notes = "", tuple[str, ...]()
        self._meanwhile = []
        try:
            self._events, notes = await self.events.read()
            for event in self._meanwhile:
                self._add(event)
        except AkoshaError as raised:
            error = str(raised)
        finally:
            self._meanwhile = None
        self._sources[NATS] = replace(self._sources[NATS], error=error, notes=notes)

    @property
    def events_unread(self) -> bool:
        """Whether the stored events could not be read."""
        return bool(self._sources[NATS].error)

    async def read_systems(self, systems: Collection[str]) -> None:
        """Read what the bucket has of these systems again."""
        if self.bucket is not None:
            async with self._reading_bucket:
                self._facts |= await self.bucket.read_systems(systems)

    def take(self, event: Event) -> bool:
        """Take a new event. Return whether it is of a kind that the fleet shows."""
        is_known = event.system_id in self._events or len(self._events) < MOST_SYSTEMS
        if type(event) not in KINDS.values() or not is_known:
            return False
        if self._meanwhile is not None:
            self._meanwhile.append(event)
        self._add(event)
        return True

    def _add(self, event: Event) -> None:
        entry = StreamEntry(subject=event.subject, sequence=0, stored_at=self.clock.now(), event=event)
        self._events[event.system_id] = self._events.get(event.system_id, SystemEvents()).with_entry(entry)

    async def follow(self, handler: Handler, changed: Callable[[], None]) -> None:
        """Pass new events to `handler`. `changed` is called when some may have been missed: `read_events` again."""
        if self.events is not None:
            await self.events.reader.follow(tuple(KINDS), handler, changed)
            self._is_live = True

    def report(self) -> FleetReport:
        """Return the fleet as it is known now."""
        now = self.clock.now()
        sources = dict(self._sources)
        for name, known in ((BUCKET, self._facts), (NATS, self._events)):
            sources[name] = replace(sources[name], systems=len(known))
        if self._is_live and self.events is not None and (problem := self.events.reader.problem):
            live = f"new events do not arrive: {problem}"
            sources[NATS] = replace(sources[NATS], notes=(*sources[NATS].notes, live))
        systems = [
            merged(
                system_id,
                self._facts.get(system_id),
                self._events.get(system_id),
                ingested=self._ingested.get(system_id),
                now=now,
                overdue=self.overdue,
            )
            for system_id in self._facts.keys() | self._events.keys()
        ]
        return FleetReport(time=now, sources=tuple(sources.values()), systems=tuple(by_severity(systems)))

    async def _read_cursors(self) -> None:
        try:
            self._ingested = await self.cursors()
        except AkoshaError as error:
            self._sources[LEDGER] = Source(name=LEDGER, location="the ledger of this machine", error=str(error))
        else:
            self._sources.pop(LEDGER, None)
