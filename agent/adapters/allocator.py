"""The C library's allocator: freed memory is returned to the system.

glibc takes blocks of 128 KiB and more from the system one by one and gives them back one by one, but only until the
first is freed: then it raises that limit to the block's size, up to 32 MiB, and from there on such blocks lie in its
heaps, where what is freed between two that live stays. An upload frees hundreds of blocks of half a mebibyte in
no order: of 16 MiB in use it made 60. A limit that is set is not raised.
"""

import ctypes

LARGE_BYTES = 128 * 1024
"""glibc's own limit at the start."""

_M_MMAP_THRESHOLD = -3  # malloc.h


def give_back_large_blocks() -> bool:
    """Fix the limit for this process; return whether there is one (not so on macOS and with musl). Idempotent."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
