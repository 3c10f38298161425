"""Having bytes and names on the disk, where the file system knows how; for all floors.

Some network and FUSE file systems refuse fsync altogether. What is written there is as durable as they make it: that
is no reason to refuse a backup.
"""

import errno
import os

_NOT_KNOWN = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def sync_to_disk(descriptor: int) -> None:
    """Have a file's bytes, or a folder's names, on the disk. Raises OSError, but not where fsync is not known."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EBADF:
            os.fstat(descriptor)  # raises where the descriptor is a bad one; else its file system says so of a folder
        elif error.errno not in _NOT_KNOWN:
            raise
