"""The agent's errors for files in its own directories that cannot be written."""

import errno
import os
from pathlib import Path

from agent.domain.errors import StagingFull, StateError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The error numbers of a disk, a quota or a file size limit that is used up."""


def not_writable(path: Path, error: OSError) -> StateError | StagingFull:
    """Return the error, which is transient: StagingFull if the disk is full."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    kind = StagingFull if error.errno in FULL else StateError
    return kind(
        f"{path} cannot be written: {reason}",
        hint=f"check the free space and permissions of {path.parent}",
        transient=True,
    )
