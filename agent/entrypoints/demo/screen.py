"""What the demo shows: colours, a spinner and a table on a terminal, plain lines in a pipe."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.entrypoints.demo.checks import Check

_COLOURS = {"writer": "yellow", "agent": "cyan", "cloud": "green", "demo": "magenta"}
_ACTOR_WIDTH = max(map(len, _COLOURS))


class Screen:
    """Prints as things happen; the seconds count from its making."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._pretty = console.is_terminal
        self._unicode = console.encoding.lower().startswith("utf")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def title(self, text: str, below: str) -> None:
        """Print the headline of it all."""
        self._paragraph(Text(text, style="bold"), below)

    def stage(self, number: int, title: str, below: str) -> None:
        """Print the headline of a stage and what to look for in it."""
        self._paragraph(Text.assemble((f"{number}  ", "bold cyan"), (title, "bold")), below)

    def line(self, actor: str, text: str) -> None:
        """Print what somebody did just now."""
        if not self._pretty:
            self._plain(f"{self.seconds:5.1f} s  {actor:<{_ACTOR_WIDTH}}  {text}")
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(style=_COLOURS.get(actor, ""), no_wrap=True, min_width=_ACTOR_WIDTH)
        grid.add_column()
        grid.add_row(f"{self.seconds:5.1f} s", actor, Text(text))
        self._console.print(grid)

    def say(self, text: str = "") -> None:
        """Print a line as it is."""
        self._plain(text)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show on a terminal that something is awaited."""
        if not self._pretty:
            yield
            return
        with self._console.status(Text(f"waiting until {what}", style="dim"), spinner="dots"):
            yield

    def table(self, checks: Sequence[Check]) -> None:
        """Print the checks, a mark to each."""
        self._plain("")
        if not self._pretty:
            width = max(len(check.name) for check in checks)
            for check in checks:
                self._plain(f"{'ok' if check.ok else 'FAILED':<6}  {check.name:<{width}}  {check.detail}".rstrip())
            return
        marks = ("✔ ok", "✘ failed") if self._unicode else ("ok", "FAILED")
        table = Table("check", "result", "detail", title="What was checked", title_justify="left", title_style="bold")
        for check in checks:
            mark = Text(marks[0], style="bold green") if check.ok else Text(marks[1], style="bold red")
            table.add_row(Text(check.name), mark, Text(check.detail))
        self._console.print(table)

    def _paragraph(self, title: Text, below: str) -> None:
        if not self._pretty:
            self._plain(f"\n{title.plain}\n   {below}")
            return
        self._console.print(Group(Text(), title, Padding(Text(below, style="dim"), (0, 0, 0, 3))))

    def _plain(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
