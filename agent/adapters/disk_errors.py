"""The agent's error for a file in its own directories that cannot be written."""

import errno
import os
from pathlib import Path

from agent.domain.errors import StagingFull, StateError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def not_writable(path: Path, error: OSError) -> StateError | StagingFull:
    """Return the error, which is transient: StagingFull if the disk is full."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    kind = StagingFull if error.errno in _FULL else StateError
    return kind(
        f"{path} cannot be written: {reason}",
        hint=f"check the free space and permissions of {path.parent}",
        transient=True,
    )
