"""When a burst of file changes becomes one sync: a quiet time, a deadline, a minimum interval. Pure: times come in.

    changes   x xx x              x x x x x x x x x x x x ...           x
    quiet         |--quiet-->                                            |
    deadline                      |--------deadline------->              |
    sync                     S                             S   |--min interval, trailing edge--> S

All times are monotonic seconds.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class DebounceRules:
    """Seconds: without a change before a sync; the longest wait under constant change; between two syncs' starts."""

    quiet: float
    deadline: float
    min_interval: float


@dataclass(frozen=True, slots=True)
class Debounce:
    """What has been seen: the burst's first and last change, and when the last sync caused by changes started."""

    first: float | None = None
    last: float | None = None
    started: float | None = None

    def changed(self, at: float) -> "Debounce":
        """A change was made at `at`. Changes may be reported late, and out of order."""
        return replace(
            self,
            first=at if self.first is None else min(at, self.first),
            last=at if self.last is None else max(at, self.last),
        )

    def taken(self) -> "Debounce":
        """The burst is being looked after; what changes from here on is a new burst."""
        return Debounce(started=self.started)

    def fired(self, now: float) -> "Debounce":
        """A sync for a burst started at `now`: the minimum interval runs from there."""
        return replace(self, started=now)

    def restored(self, burst: "Debounce") -> "Debounce":
        """The burst that was taken could not be looked after: it waits again, together with what came since."""
        return replace(self, first=burst.first, last=burst.last if self.last is None else self.last)

    def due(self, rules: DebounceRules) -> float | None:
        """Return when the sync is due, or None if no change waits."""
        if self.first is None or self.last is None:
            return None
        due = min(self.last + rules.quiet, self.first + rules.deadline)
        if self.started is not None:
            due = max(due, self.started + rules.min_interval)
        return due
