"""Makes glibc's allocator return freed memory to the system.

glibc maps each block of 128 KiB or more separately and unmaps it when it is freed, but only until the first one is
freed: then it raises that threshold to the block's size, up to 32 MiB. Later blocks come from its heaps, which cannot
return memory that is freed between two used blocks. An upload frees hundreds of blocks of half a mebibyte in no
particular order: the process grew to 60 MiB with 16 MiB in use. glibc never raises a threshold that is set explicitly.
"""

import ctypes

LARGE_BYTES = 128 * 1024
"""glibc's initial threshold."""

_M_MMAP_THRESHOLD = -3  # malloc.h


def give_back_large_blocks(least_bytes: int = LARGE_BYTES) -> bool:
    """Set the threshold for this process: blocks of this size and larger are mapped. Idempotent.

    Returns False if the C library has none (macOS, musl).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, least_bytes))
