"""Processes that a process has started."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def children(running: str, pid: int | None = None, *, recursive: bool = False) -> list[psutil.Process]:
    """Return the living children of this process, or of `pid`, whose command contains `running`."""
    return [*_children(running, pid, recursive=recursive)]


def _children(running: str, pid: int | None, *, recursive: bool) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=recursive):
            with suppress(psutil.NoSuchProcess):  # it has ended since, or is not waited for yet
                if running in " ".join(child.cmdline()):
                    yield child


def open_databases(pid: int) -> list[str]:
    """Return the names of the DuckDB files that a process has open, also of deleted ones (Linux)."""
    names = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(descriptor.readlink().name)
    return sorted(name for name in names if ".duckdb" in name)
