"""`sync` without a change: the bytes that it sends, and those that it reads of the database.

The page cache shows what was read: the bench drops the database from the cache before the sync, and counts its cached
pages afterwards. The agent reads the header of 12,288 bytes; the kernel reads ahead.
"""

import ctypes
import mmap
import os
import time
from pathlib import Path

from tests.bench.databases import Databases
from tests.bench.report import Line, mebibytes
from tests.support.machine import Machine

HEADER_BYTES = 12_288
AHEAD_BYTES = 256 * 1024
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


def lines(folder: Path, databases: Databases, size: int) -> list[Line]:
    """Sync twice without a change in between. Raises RuntimeError unless the second sync is skipped."""
    machine = Machine(folder)
    file = databases.copy_to(size, machine.data)
    assert machine.sync()["outcome"] == "succeeded"
    before = sorted(path for path in machine.bucket.rglob("*") if path.is_file())
    drop_from_cache(file)
    remaining, started = cached(file), time.perf_counter()
    result = machine.sync()
    took, read = time.perf_counter() - started, cached(file) - remaining
    sent = len({path for path in machine.bucket.rglob("*") if path.is_file()} - set(before))
    if result["outcome"] != "skipped":
        raise RuntimeError(f"sync without a change: {result}")
    what = f"sync of {size} MiB, unchanged"
    if remaining:
        read_line = Line(f"{what}: read", "unknown: the page cache of this file system cannot be dropped")
    else:
        bar = f"the header of {HEADER_BYTES:,} bytes, and the kernel's read-ahead"
        read_line = Line(f"{what}: read", f"{read:,} bytes", None, bar, read <= HEADER_BYTES + AHEAD_BYTES)
    return [
        Line(
            f"{what}: sent",
            f"{result['bytes_transferred']} bytes, {sent} objects",
            None,
            "nothing",
            result["bytes_transferred"] == sent == 0,
        ),
        read_line,
        Line(f"{what}: the command", f"{took:.2f} s, of {mebibytes(file.stat().st_size)}"),
    ]
