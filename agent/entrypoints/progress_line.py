"""A live progress line on standard error, shown only on a terminal."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.domain.progress import Progress
from agent.entrypoints import live_line
from agent.entrypoints.formatting import bar, phase_name, progress_parts

REFRESH_SECONDS = 1.0
"""Interval at which rate and remaining time are shown again if nothing moves."""

REDRAW_SECONDS = 0.1
"""Shortest time between two updates of the line."""


class ProgressBar:
    """The progress of the current phase in one line. Implements `agent.ports.Reporter`."""

    def __init__(self, *, visible: bool, of_bytes: bool = True) -> None:
        self._visible, self._of_bytes = visible, of_bytes
        self._progress: Progress | None = None
        self._drawn_at = 0.0

    def phase(self, name: str, total: int | None) -> None:
        """Begin a phase, or set its total (None: not known yet)."""
        self.show(name, 0, total)

    def moved(self, count: int) -> None:
        """Advance the current phase."""
        self._advance(count, kept=0)

    def kept(self, count: int) -> None:
        """Advance the current phase by what was done before."""
        self._advance(count, kept=count)

    def show(self, name: str, done: int, total: int | None, *, kept: int = 0) -> None:
        """Show the progress of a phase, and make it the current one. `kept`: see `Progress`."""
        now = time.monotonic()
        if self._progress is None or self._progress.phase != name:
            self._progress = Progress(name, total, at=now, done=done)
            self._drawn_at = 0.0
        self._progress.set_total(total)
        self._progress.update(done, at=now, kept=kept)
        if now - self._drawn_at >= REDRAW_SECONDS or done == total:
            self.redraw()

    def redraw(self) -> None:
        """Show the line as of now."""
        if not self._visible or self._progress is None:
            return
        self._drawn_at = now = time.monotonic()
        live_line.show(*progress_texts(self._progress, at=now, of_bytes=self._of_bytes, encoding=sys.stderr.encoding))

    def clear(self) -> None:
        """Remove the line."""
        self._progress = None
        if self._visible:
            live_line.show("")

    def _advance(self, count: int, *, kept: int) -> None:
        if self._progress is not None:
            now = self._progress
            self.show(now.phase, now.done + count, now.total, kept=now.kept + kept)

    @staticmethod
    def say(text: str) -> None:
        """Print a message on a line of its own, above the progress."""
        live_line.write_above(f"{text}\n")


def progress_texts(progress: Progress, *, at: float, of_bytes: bool = True, encoding: str | None) -> list[str]:
    """Return the progress in a line, and shorter lines for narrower terminals.

    They lack the bar, then the counts, then the rate, then all but the first word of the phase. Percent and remaining
    time are in all of them.
    """
    name, fraction = phase_name(progress.phase), progress.fraction
    parts = {
        "phase": name,
        "bar": "" if fraction is None else bar(fraction, encoding),
        **progress_parts(
            progress.done, progress.total, progress.rate(at=at), progress.remaining_seconds(at=at), of_bytes=of_bytes
        ),
    }
    texts = []
    for less in ({}, {"bar": ""}, {"count": ""}, {"rate": ""}, {"phase": name.split()[0]}):
        parts |= less
        texts.append("  ".join(filter(None, parts.values())))
    return texts


@asynccontextmanager
async def progress_bar(*, of_bytes: bool = True) -> AsyncIterator[ProgressBar]:
    """Show progress while the block runs. Counts are bytes, or items if `of_bytes` is false."""
    shown = ProgressBar(visible=live_line.is_possible(), of_bytes=of_bytes)

    async def refresh() -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            shown.redraw()

    refreshing = asyncio.create_task(refresh(), name="progress-line")
    try:
        yield shown
    finally:
        refreshing.cancel()
        await asyncio.wait({refreshing})
        shown.clear()
