"""How far a call is, in the figures of MCP: they grow with every notification, whatever the phases of a sync do."""

from dataclasses import dataclass

from agent.domain.events import SyncProgress
from agent.entrypoints.results import human_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One notification: `done` of `total` (None: nobody knows) in bytes, but for what keeps it growing; in words."""

    done: float
    total: float | None
    message: str


class ProgressCounter:
    """The steps of one call. Each phase goes on from where the one before it has come to."""

    def __init__(self) -> None:
        self._last = 0.0
        self._total: float | None = None
        self._base = 0.0
        self._stretch = ("", "", 0)
        self._seen = 0

    def begun(self, message: str) -> Step:
        """Return the first step."""
        return Step(self._last, self._total, message)

    def moved(self, event: SyncProgress) -> Step:
        """Return the step for what a sync tells of itself."""
        stretch = (event.method, event.phase, event.total_bytes)
        if stretch != self._stretch or event.done_bytes < self._seen:
            self._stretch, self._base = stretch, self._last
            self._total = self._base + event.total_bytes if event.total_bytes else None
        self._seen = event.done_bytes
        of = f" of {human_bytes(event.total_bytes)}" if event.total_bytes else ""
        message = f"{event.method}: {event.phase}, {human_bytes(event.done_bytes)}{of}"
        return self._step(self._base + event.done_bytes, message)

    def stood(self, message: str) -> Step:
        """Return a step for a time in which nothing has moved."""
        return self._step(self._last, message)

    def ended(self, message: str) -> Step:
        """Return the last step: all of it is done."""
        self._last = self._total if self._total is not None and self._total > self._last else self._last + 1
        return Step(self._last, self._last, message)

    def _step(self, done: float, message: str) -> Step:
        if done <= self._last:  # half of what is left, but no more than a byte: it never gets there
            left = self._total - self._last if self._total is not None else 2.0
            done = self._last + min(1.0, left / 2)
        if done <= self._last or (self._total is not None and done > self._total):
            self._total = None
            done = max(done, self._last + 1)
        self._last = done
        return Step(done, self._total, message)
