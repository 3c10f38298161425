"""The table of results: a line per measurement, with its bar."""

import os
import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Line:
    """`measured` is text; `ratio` refers to `bar`. `ok` is None if no bar applies."""

    what: str
    measured: str
    ratio: float | None = None
    bar: str = ""
    ok: bool | None = None


def mebibytes(count: float) -> str:
    """Return a number of bytes as text in MiB."""
    return f"{count / MEBIBYTE:,.1f} MiB"


def megabytes(count: float) -> str:
    """Return a number of bytes as text in MB."""
    return f"{count / 10**6:,.2f} MB"


def seconds(times: Sequence[float]) -> str:
    """Return the median of times and their range, as text."""
    spread = f" ({min(times):.2f}-{max(times):.2f})" if len(times) > 1 else ""
    return f"{statistics.median(times):.2f} s{spread}"


def show(lines: Sequence[Line]) -> None:
    """Print the table: coloured on a terminal, else plain."""
    table = Table(title=f"akosha-agent on {machine()}", title_justify="left", show_lines=False)
    for name in ("what", "measured", "ratio", "the bar", "ok?"):
        table.add_column(name, justify="right" if name == "ratio" else "left", overflow="fold")
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        ok = {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[line.ok]
        table.add_row(line.what, line.measured, ratio, line.bar, ok)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)
    missed = [line.what for line in lines if line.ok is False]
    console.print(f"missed: {'; '.join(missed)}" if missed else "every bar is reached")


def raise_descriptors() -> int:
    """Let this process, and those that it starts, open as many files as the system permits; return that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def machine() -> str:
    """Return a description of this machine in one line."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"load {load:.1f}"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
