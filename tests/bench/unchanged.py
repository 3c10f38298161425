"""`sync` where nothing has changed: what it sends, and what it reads of the database.

The truth about reading is the kernel's: the database's pages are dropped from its cache, and afterwards those that are
back were read. The kernel reads ahead of who reads 12,288 bytes; more than that is more than a look at the header.
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
    """Return how many bytes of a file are in the kernel's cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as view:
        anchor = ctypes.c_char.from_buffer(view)
        try:
            if _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), found):
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
        finally:
            del anchor
    return sum(state & 1 for state in found) * mmap.PAGESIZE


def forget(path: Path) -> None:
    """Have the kernel drop a file from its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def lines(folder: Path, databases: Databases, size: int) -> list[Line]:
    """Sync twice, nothing changing in between. Raises RuntimeError where the second is no skip."""
    machine = Machine(folder)
    file = databases.place(size, machine.data)
    assert machine.sync()["outcome"] == "succeeded"
    before = sorted(path for path in machine.bucket.rglob("*") if path.is_file())
    forget(file)
    left, started = cached(file), time.perf_counter()
    result = machine.sync()
    took, read = time.perf_counter() - started, cached(file) - left
    sent = len({path for path in machine.bucket.rglob("*") if path.is_file()} - set(before))
    if result["outcome"] != "skipped":
        raise RuntimeError(f"sync of what had not changed: {result}")
    what = f"sync of {size} MiB, unchanged"
    if left:
        reported = Line(f"{what}: read", "cannot be told: this file system does not drop its cache")
    else:
        bar = f"the {HEADER_BYTES:,} of the header and what the kernel reads ahead"
        reported = Line(f"{what}: read", f"{read:,} bytes", None, bar, read <= HEADER_BYTES + AHEAD_BYTES)
    return [
        Line(
            f"{what}: sent",
            f"{result['bytes_transferred']} bytes, {sent} objects",
            None,
            "nothing",
            result["bytes_transferred"] == sent == 0,
        ),
        reported,
        Line(f"{what}: the whole command", f"{took:.2f} s, of {mebibytes(file.stat().st_size)}"),
    ]
