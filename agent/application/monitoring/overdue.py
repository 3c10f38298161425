"""Announces that a target has lacked changes for too long, and the end of that.

The first target of the route counts: what it lacks is pending, as in the status, even if another method has delivered
it. A database waits since it was first seen to be pending; each delivery of it starts that time again. So a database
that changes all the time and is delivered regularly is never overdue, and one that alone cannot be delivered is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

import structlog

from agent.application.monitoring.status import OVERDUE
from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.application.triggers.publisher import Publisher
from agent.domain.delivery_state import TargetRecord, pending
from agent.domain.errors import SnapshotError
from agent.domain.events import LONGEST_TEXT, MOST_NAMED, DeliveryOverdue, DeliveryRecovered, archive_event_id
from agent.domain.identity import Identity
from agent.domain.parsing import parse_json
from agent.domain.plain_text import shorten
from agent.ports import Clock, Ledger

GRACE_SECONDS = 900.0
"""Time after the start, and after a suspend, in which nothing is announced: first the agent syncs what is pending."""

LONGEST_SECONDS = 900.0
"""Longest time between two checks."""

SUSPENDED_SECONDS = 60.0
"""The machine was suspended if the wall clock is so much further ahead of the event loop's clock than before."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Since when a database is pending. `delivered_by`: the result of its last delivery, "" if there was none."""

    since: datetime
    delivered_by: str


@dataclass(frozen=True, slots=True)
class OverdueState:
    """What waits, by database, and what was announced: number of hours -> since when the first database waits."""

    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    announced: Mapping[float, datetime] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the state in a ledger note; an empty one for any other text."""
        try:
            document: Mapping[str, Any] = parse_json(text)
            return cls(
                {
                    str(name): Waiting(datetime.fromisoformat(since), str(delivered_by))
                    for name, (since, delivered_by) in document["waiting"].items()
                },
                {float(hours): datetime.fromisoformat(since) for hours, since in document["announced"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def note(self) -> str:
        """Return the state as a note for `of`."""
        return json.dumps(
            {
                "waiting": {name: [one.since.isoformat(), one.delivered_by] for name, one in self.waiting.items()},
                "announced": {str(hours): since.isoformat() for hours, since in self.announced.items()},
            }
        )

    def observed(self, record: TargetRecord, lacking: frozenset[str], now: datetime) -> "OverdueState":
        """Return the state after an observation of what the target lacks."""
        waiting = {}
        for name in sorted(lacking):
            delivered_by = known.delivered_by if (known := record.databases.get(name)) else ""
            before = self.waiting.get(name)
            same = before is not None and before.delivered_by == delivered_by and before.since <= now
            waiting[name] = before if before is not None and same else Waiting(now, delivered_by)
        return replace(self, waiting=waiting)


@dataclass(slots=True, kw_only=True)
class OverdueMonitor:
    """Announces DeliveryOverdue and DeliveryRecovered for each of the `hours`."""

    hours: Sequence[float]
    identity: Identity
    publisher: Publisher
    recorder: ResultRecorder
    ledger: Ledger
    clock: Clock
    signal: Signal
    """Set after each sync."""

    _awake_since: float = field(default=0.0, init=False)
    _drift: float | None = field(default=None, init=False)

    async def run(self) -> None:
        """Check at the latest every 15 minutes, and after each sync, until cancelled. Raises StateError."""
        while True:
            await self.signal.wait(await self.check())

    async def check(self) -> float:
        """Check once. Return the seconds until the next check. Raises StateError."""
        now, grace = self.clock.now(), self._grace_left()
        try:
            survey = await self.publisher.taker.survey()
        except SnapshotError:  # what is pending is unknown; the rescan logs it
            return LONGEST_SECONDS
        policy, methods = self.publisher.policy, self.publisher.methods
        first = next((methods[name] for name in policy.route if name in methods), None)
        if first is None or not policy.enabled:
            return LONGEST_SECONDS
        record = await self.ledger.record(first.target)
        before = OverdueState.of((await self.ledger.notes()).get(OVERDUE, ""))
        state = before.observed(record, pending(record, survey), now)
        for hours in sorted({*self.hours, *state.announced}):
            late = {name: one.since for name, one in state.waiting.items() if now - one.since >= timedelta(hours=hours)}
            if late and hours not in state.announced and grace <= 0:
                state = await self._announce_overdue(state, record, hours, late)
            elif not late and hours in state.announced:  # also if the setting has other hours now
                state = await self._announce_recovered(state, record, hours)
        if state != before:
            await self.ledger.note(OVERDUE, state.note())
        return self._seconds_left(state, now, grace)

    def _grace_left(self) -> float:
        """Return the seconds of the grace period that are left. It starts again after the machine was suspended."""
        monotonic = self.clock.monotonic()
        drift = self.clock.now().timestamp() - monotonic
        if self._drift is None or drift - self._drift > SUSPENDED_SECONDS:
            self._awake_since = monotonic
        self._drift = drift
        return self._awake_since + GRACE_SECONDS - monotonic

    def _seconds_left(self, state: OverdueState, now: datetime, grace: float) -> float:
        due = [
            max((one.since + timedelta(hours=hours) - now).total_seconds(), grace)
            for hours in self.hours
            if hours not in state.announced
            for one in state.waiting.values()
        ]
        return max(1.0, min([LONGEST_SECONDS, *due]))

    async def _announce_overdue(
        self, state: OverdueState, record: TargetRecord, hours: float, late: Mapping[str, datetime]
    ) -> OverdueState:
        since = min(late.values())
        event = DeliveryOverdue(
            id=self._event_id(f"overdue-{hours:g}h", since),
            time=self.clock.now(),
            system_id=self.identity.system_id,
            method=record.target.method,
            hours=hours,
            databases=tuple(shorten(name, LONGEST_TEXT) for name in sorted(late)[:MOST_NAMED]),
            since=since,
            error=shorten(record.error, LONGEST_TEXT),
        )
        await self.ledger.announce(event)
        self.recorder.flush_soon()
        _log.warning("delivery_overdue", databases=sorted(late), since=since.isoformat(), error=record.error)
        return replace(state, announced={**state.announced, hours: since})

    async def _announce_recovered(self, state: OverdueState, record: TargetRecord, hours: float) -> OverdueState:
        since = state.announced[hours]
        event = DeliveryRecovered(
            id=self._event_id(f"recovered-{hours:g}h", since),
            time=self.clock.now(),
            system_id=self.identity.system_id,
            method=record.target.method,
            hours=hours,
            since=since,
        )
        await self.ledger.announce(event)
        self.recorder.flush_soon()
        _log.info("delivery_recovered", since=since.isoformat())
        return replace(state, announced={known: at for known, at in state.announced.items() if known != hours})

    def _event_id(self, outcome: str, since: datetime) -> str:
        """Return an ID that is the same if the agent is killed before it has stored what it announced."""
        return archive_event_id(self.identity.system_id, self.identity.agent_id, outcome, since)
