"""`sync` without a change: its requests, what it reads of the database, and how long it takes.

The page cache shows what was read: the bench drops the database from the cache before the sync, and counts its cached
pages afterwards. The agent reads the header of 12,288 bytes; the kernel reads ahead.
"""

import ctypes
import mmap
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.bench.agents import Sync, syncing
from tests.bench.databases import Databases
from tests.bench.report import Line, seconds

HEADER_BYTES = 12_288
AHEAD_BYTES = 256 * 1024
COMMAND_SECONDS = 0.5
_LIBC = ctypes.CDLL(None, use_errno=True)


def cached(path: Path) -> int:
    """Return how many bytes of a file are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as view:
        anchor = ctypes.c_char.from_buffer(view)
        try:
            if _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), states):
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
        finally:
            del anchor
    return sum(state & 1 for state in states) * mmap.PAGESIZE


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def lines(folder: Path, databases: Databases, size: int, rounds: int) -> list[Line]:
    """Sync to S3 without a change in between, first without a running agent. Raises RuntimeError if it uploads."""
    with syncing(folder, databases, size) as agent:
        agent.sync()
        drop_from_cache(agent.file)
        remaining = cached(agent.file)
        alone = [agent.sync()]
        read = cached(agent.file) - remaining
        alone += [agent.sync() for _ in range(rounds - 1)]
        with agent.machine.run():
            agent.sync()  # what the agent does at its start is over
            asked = [agent.sync() for _ in range(rounds)]
    what = f"sync of {size} MiB, unchanged"
    if remaining:
        read_line = Line(f"{what}: read", "unknown: the page cache of this file system cannot be dropped")
    else:
        bar = f"the header of {HEADER_BYTES:,} bytes, and the kernel's read-ahead"
        read_line = Line(f"{what}: read", f"{read:,} bytes", None, bar, read <= HEADER_BYTES + AHEAD_BYTES)
    return [
        read_line,
        *_lines(f"{what}, no agent running", alone),
        *_lines(f"{what}, with a running agent", asked),
    ]


def _lines(what: str, syncs: Sequence[Sync]) -> list[Line]:
    if outcomes := {sync.outcome for sync in syncs} - {"skipped"}:
        raise RuntimeError(f"{what}: {outcomes}")
    sent, times = sum(sync.sent for sync in syncs), [sync.seconds for sync in syncs]
    took = statistics.median(times)
    ratio = took / COMMAND_SECONDS
    return [
        Line(f"{what}: requests", f"{sent} bytes sent, {len(syncs)} times", None, "nothing", not sent),
        Line(f"{what}: the command", seconds(times), ratio, f"{COMMAND_SECONDS} s", took <= COMMAND_SECONDS),
    ]
