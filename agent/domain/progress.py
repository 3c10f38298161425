"""Rate and remaining time of a running operation."""

import math
from dataclasses import dataclass

SMOOTHING_SECONDS = 5.0
"""Time constant of the rate: progress that was made this long ago counts for 37 %."""

MEANINGFUL_SECONDS = 2.0
"""Before this time the rate says more about buffers than about the connection."""

STALLED_SECONDS = 10.0
"""Without progress for this long, the remaining time is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A sync that is running, as of now. The counts are bytes of the files that are sent, before compression.

    `bytes_per_second` and `remaining_seconds` are null while they are unknown.
    """

    request_id: str
    method: str
    phase: str
    done_bytes: int
    total_bytes: int
    bytes_per_second: float | None = None
    remaining_seconds: float | None = None

    @property
    def fraction(self) -> float | None:
        """The done part, from 0 to 1; None if the total is unknown."""
        return min(self.done_bytes / self.total_bytes, 1.0) if self.total_bytes else None


class Progress:
    """The progress of one phase of an operation, in bytes or items. Times are monotonic seconds.

    `total` is None if it is unknown. `done` are done, `kept` of them by an earlier operation: these take no time now,
    so the rate starts over when they grow.
    """

    def __init__(self, phase: str, total: int | None, *, at: float, done: int = 0) -> None:
        self.phase, self.total, self.kept = phase, total, 0
        self._start(done, at)

    def _start(self, done: int, at: float) -> None:
        """Start the rate with what is done by now."""
        self.done = self._counted = done
        self._started = self._updated = self._moved = at
        self._interval = 0.0  # between the last two updates
        self._weighted, self._weight = 0.0, 0.0  # counts and seconds, both decayed

    @property
    def fraction(self) -> float | None:
        """The done part, from 0 to 1; None if the total is unknown or 0."""
        return min(self.done / self.total, 1.0) if self.total else None

    def set_total(self, total: int | None) -> None:
        """Replace the total, which has become known or has changed."""
        self.total = total

    def update(self, done: int, *, at: float, kept: int = 0) -> None:
        """Record that `done` is done by now. A smaller number than before means that a part is done again."""
        if kept != self.kept:
            self.kept = kept
            self._start(done, at)
            return
        seconds = at - self._updated
        if seconds > 0:
            decay = math.exp(-seconds / SMOOTHING_SECONDS)
            weight = SMOOTHING_SECONDS * (1 - decay)
            # The progress is spread over the interval. Counted at its end, it would outweigh the time that it took.
            self._weighted = self._weighted * decay + max(done - self._counted, 0) / seconds * weight
            self._weight = self._weight * decay + weight
            self._updated, self._interval, self._counted = at, seconds, done
        if done > self.done:
            self._moved = at
        self.done = done

    def rate(self, *, at: float) -> float | None:
        """Return the smoothed rate per second; None in the first seconds, and before any progress."""
        if at - self._started < MEANINGFUL_SECONDS or not self._weighted:
            return None
        # Until the next update is overdue, nothing shows that the progress has slowed down.
        decay = math.exp(-max(at - self._updated - self._interval, 0.0) / SMOOTHING_SECONDS)
        weight = self._weight * decay + SMOOTHING_SECONDS * (1 - decay)
        return self._weighted * decay / weight if weight else None

    def remaining_seconds(self, *, at: float) -> float | None:
        """Return the remaining time; None if the total or the rate is unknown, or nothing has moved for some time."""
        rate = self.rate(at=at)
        if not self.total or not rate or at - self._moved > STALLED_SECONDS:
            return None
        return max(self.total - self.done, 0) / rate
