"""Announces that a target has lacked changes for too long, and the end of that.

The first target of the route counts: what it lacks is pending, as in the status, even if another method has delivered
it. A database that changes all the time and is delivered regularly is never overdue, and one that alone cannot be
delivered is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from agent.application.monitoring.status import OVERDUE
from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.application.triggers.publisher import Publisher
from agent.domain.delivery_state import TargetRecord, pending
from agent.domain.errors import SnapshotError
from agent.domain.events import LONGEST_TEXT, MOST_NAMED, DeliveryOverdue, DeliveryRecovered, archive_event_id
from agent.domain.identity import Identity
from agent.domain.overdue import OverdueState, Waiting
from agent.domain.plain_text import shorten
from agent.ports import Clock, Ledger

GRACE_SECONDS = 900.0
"""Time after the start, and after a suspend, in which nothing is announced: first the agent syncs what is pending."""

LONGEST_SECONDS = 900.0
"""Longest time between two checks."""

SUSPENDED_SECONDS = 60.0
"""The machine was suspended if the wall clock is so much further ahead of the event loop's clock than before."""

_log = structlog.get_logger()


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
        except SnapshotError:  # the rescan logs it
            survey = {}
        if not survey:  # what is pending is unknown: perhaps a disk is not mounted
            return LONGEST_SECONDS
        policy, methods = self.publisher.policy, self.publisher.methods
        first = next((methods[name] for name in policy.route if name in methods), None)
        if first is None or not policy.enabled:
            return LONGEST_SECONDS
        record = await self.ledger.record(first.target)
        before = OverdueState.of((await self.ledger.notes()).get(OVERDUE, ""))
        lacking = pending(record, survey)
        state = before.observed(record, lacking, now)
        for hours in sorted({*self.hours, *state.announced}):  # also those that the setting does not have any more
            late = state.late(hours, now)
            if hours not in state.announced:
                if late and grace <= 0:
                    state = state.with_late(hours, late)
                    await self._announce(self._overdue(record, hours, late), state)
                continue
            state = state.with_late(hours, late)
            undelivered = state.undelivered(hours, record)
            if not undelivered & lacking:
                event = self._recovered(record, hours, state.announced[hours].since, undelivered - survey.keys())
                state = state.without(hours)
                await self._announce(event, state)
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

    async def _announce(self, event: DeliveryOverdue | DeliveryRecovered, state: OverdueState) -> None:
        """Store the event and the state after it in one transaction, and publish the event."""
        await self.ledger.announce(event, notes={OVERDUE: state.note()})
        self.recorder.flush_soon()
        since = event.since.isoformat()
        if isinstance(event, DeliveryOverdue):
            _log.warning("delivery_overdue", databases=list(event.databases), since=since, error=event.error)
        else:
            _log.info("delivery_recovered", since=since, removed=list(event.removed))

    def _overdue(self, record: TargetRecord, hours: float, late: Mapping[str, Waiting]) -> DeliveryOverdue:
        now = self.clock.now()
        return DeliveryOverdue(
            id=self._event_id(f"overdue-{hours:g}h", now),
            time=now,
            system_id=self.identity.system_id,
            method=record.target.method,
            hours=hours,
            databases=_named(late),
            since=min(one.since for one in late.values()),
            error=shorten(record.error, LONGEST_TEXT),
        )

    def _recovered(
        self, record: TargetRecord, hours: float, since: datetime, removed: Collection[str]
    ) -> DeliveryRecovered:
        now = self.clock.now()
        return DeliveryRecovered(
            id=self._event_id(f"recovered-{hours:g}h", now),
            time=now,
            system_id=self.identity.system_id,
            method=record.target.method,
            hours=hours,
            since=since,
            removed=_named(removed),
        )

    def _event_id(self, outcome: str, now: datetime) -> str:
        return archive_event_id(self.identity.system_id, self.identity.agent_id, outcome, now)


def _named(databases: Collection[str]) -> tuple[str, ...]:
    return tuple(shorten(name, LONGEST_TEXT) for name in sorted(databases)[:MOST_NAMED])
