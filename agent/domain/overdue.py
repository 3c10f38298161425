"""Which databases have waited too long for a delivery to a target, and which of them were announced.

A database waits since it was first seen to be pending; each delivery of it starts that time again. The end of an
announcement depends on no clock: each database that was late was delivered, or is not pending any more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from agent.domain.delivery_state import TargetRecord
from agent.domain.parsing import parse_json

EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
"""A clock that shows an earlier time is wrong: this version is younger."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Since when a database is pending. `delivered_by`: the result of its last delivery, "" if there was none."""

    since: datetime
    delivered_by: str

    def observed(self, delivered_by: str, now: datetime) -> "Waiting":
        """Return the state after another observation. A time that a wrong clock has shown starts again."""
        if _is_delivery(delivered_by, self.delivered_by):
            return Waiting(now, delivered_by)
        if self.since > now or self.since < EARLIEST <= now:
            return replace(self, since=now)
        return self


@dataclass(frozen=True, slots=True)
class Announced:
    """An announcement: since when the first database waits, and the `delivered_by` of each database that is late."""

    since: datetime
    late: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OverdueState:
    """What waits for a target, by database, and what was announced, by the number of hours."""

    target: str = ""
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    announced: Mapping[float, Announced] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the state in a ledger note; an empty one for any other text."""
        try:
            document: Mapping[str, Any] = parse_json(text)
            return cls(
                str(document["target"]),
                {
                    str(name): Waiting(datetime.fromisoformat(since), str(delivered_by))
                    for name, (since, delivered_by) in document["waiting"].items()
                },
                {
                    float(hours): Announced(
                        datetime.fromisoformat(since), {str(name): str(result) for name, result in late.items()}
                    )
                    for hours, (since, late) in document["announced"].items()
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def note(self) -> str:
        """Return the state as a note for `of`."""
        return json.dumps(
            {
                "target": self.target,
                "waiting": {name: [one.since.isoformat(), one.delivered_by] for name, one in self.waiting.items()},
                "announced": {
                    str(hours): [one.since.isoformat(), {**one.late}] for hours, one in self.announced.items()
                },
            }
        )

    def observed(self, record: TargetRecord, lacking: frozenset[str], now: datetime) -> "OverdueState":
        """Return the state after an observation of what the target lacks."""
        before = self if self.target == record.target.id else self._moved(record)
        waiting = {}
        for name in sorted(lacking):
            delivered_by = _delivered_by(record, name)
            known = before.waiting.get(name)
            waiting[name] = known.observed(delivered_by, now) if known else Waiting(now, delivered_by)
        return replace(before, waiting=waiting)

    def late(self, hours: float, now: datetime) -> dict[str, Waiting]:
        """Return the databases that have waited for so many hours."""
        return {name: one for name, one in self.waiting.items() if now - one.since >= timedelta(hours=hours)}

    def with_late(self, hours: float, late: Mapping[str, Waiting]) -> "OverdueState":
        """Return the state after the announcement that these databases are late; or with them added to it."""
        known = self.announced.get(hours) or Announced(min(one.since for one in late.values()), {})
        names = {**known.late, **{name: one.delivered_by for name, one in late.items()}}
        return replace(self, announced={**self.announced, hours: replace(known, late=names)})

    def without(self, hours: float) -> "OverdueState":
        """Return the state after the end of an announcement."""
        return replace(self, announced={known: one for known, one in self.announced.items() if known != hours})

    def undelivered(self, hours: float, record: TargetRecord) -> set[str]:
        """Return the databases of an announcement that were not delivered since."""
        late = self.announced[hours].late
        return {name for name, before in late.items() if not _is_delivery(_delivered_by(record, name), before)}

    def _moved(self, record: TargetRecord) -> "OverdueState":
        """Return the state for another target. What that got earlier is not a delivery of what waits."""
        return OverdueState(
            record.target.id,
            {name: replace(one, delivered_by=_delivered_by(record, name)) for name, one in self.waiting.items()},
            {
                hours: replace(one, late={name: _delivered_by(record, name) for name in one.late})
                for hours, one in self.announced.items()
            },
        )


def _delivered_by(record: TargetRecord, name: str) -> str:
    return known.delivered_by if (known := record.databases.get(name)) else ""


def _is_delivery(delivered_by: str, before: str) -> bool:
    """Return whether there was a delivery since. A target that has lost its copies has no `delivered_by`."""
    return delivered_by not in ("", before)
