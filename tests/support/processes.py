"""Processes that a process has started."""

from collections.abc import Iterator
from contextlib import suppress

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
