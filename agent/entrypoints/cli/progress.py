"""A progress bar on standard error, shown only on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """One line per phase. Implements `agent.ports.Reporter`."""

    def __init__(self, progress: "Progress | None") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._current = ""

    def phase(self, name: str, total: int | None) -> None:
        """Begin a phase, or set its total (None: not known yet)."""
        self.show(name, 0, total)

    def moved(self, count: int) -> None:
        """Advance the current phase."""
        if self._progress is not None and self._current:
            self._progress.advance(self._tasks[self._current], count)

    def show(self, name: str, done: int, total: int | None) -> None:
        """Show the progress of a phase, and make it the current one."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        self._current = name

    def clear(self) -> None:
        """Remove all lines."""
        if self._progress is not None:
            for task in self._tasks.values():
                self._progress.remove_task(task)
        self._tasks.clear()
        self._current = ""

    def say(self, text: str) -> None:
        """Print a message on a line of its own, above the bar."""
        if self._progress is None:
            typer.echo(text, err=True)
        else:
            self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


@contextmanager
def progress_bar(*, of_bytes: bool = True) -> Iterator[ProgressBar]:
    """Show a bar while the block runs. Counts are bytes, or items if `of_bytes` is false."""
    if not sys.stderr.isatty():
        yield ProgressBar(None)
        return
    # Importing rich takes 20 ms, more than Python's start.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description:<9}"), BarColumn(), *counts)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress)
