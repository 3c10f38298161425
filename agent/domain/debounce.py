"""Decides when a burst of file changes starts a sync: after a quiet time, a deadline or a minimum interval.

    changes   x xx x              x x x x x x x x x x x x ...           x
    quiet         |--quiet-->                                            |
    deadline                      |--------deadline------->              |
    sync                     S                             S   |--min interval, trailing edge--> S

All times are monotonic seconds.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Wait(StrEnum):
    """What a burst waits for."""

    QUIET = "quiet"
    DEADLINE = "deadline"
    MIN_INTERVAL = "min_interval"


@dataclass(frozen=True, slots=True)
class DebounceRules:
    """Seconds: without a change before a sync, maximum wait while changes continue, minimum between syncs' starts."""

    quiet: float
    deadline: float
    min_interval: float


@dataclass(frozen=True, slots=True)
class Debounce:
    """The times of the burst's first and last change, and of the start of the last sync caused by changes."""

    first: float | None = None
    last: float | None = None
    started: float | None = None

    def changed(self, at: float) -> "Debounce":
        """Return the state after a change at `at`. Changes may be reported late and out of order."""
        return replace(
            self,
            first=at if self.first is None else min(at, self.first),
            last=at if self.last is None else max(at, self.last),
        )

    def taken(self) -> "Debounce":
        """Return the state without the burst, which is being handled now; later changes begin a new burst."""
        return Debounce(started=self.started)

    def fired(self, now: float) -> "Debounce":
        """Return the state after a sync for a burst started at `now`, from which the minimum interval counts."""
        return replace(self, started=now)

    def restored(self, burst: "Debounce") -> "Debounce":
        """Return the state with `burst` pending again, merged with later changes, because its handling failed."""
        return replace(self, first=burst.first, last=burst.last if self.last is None else self.last)

    def due(self, rules: DebounceRules) -> float | None:
        """Return when the sync is due, None if no change is pending."""
        waits = self.waits_for(rules)
        return None if waits is None else waits[0]

    def waits_for(self, rules: DebounceRules) -> tuple[float, Wait] | None:
        """Return when the sync is due, and the rule that decides it; None if no change is pending."""
        if self.first is None or self.last is None:
            return None
        due = min((self.last + rules.quiet, Wait.QUIET), (self.first + rules.deadline, Wait.DEADLINE))
        if self.started is not None and self.started + rules.min_interval > due[0]:
            return self.started + rules.min_interval, Wait.MIN_INTERVAL
        return due
