"""What the operating system says against a state directory, in the agent's words."""

import errno
from pathlib import Path

from agent.domain.errors import StateError


def unusable(directory: Path, error: OSError) -> StateError:
    """Return the error to raise from `error`."""
    cure = "make it writable for this user and leave room on its disk, or set akosha_agent_state_dir"
    if error.errno == errno.ENOLCK:
        cure = "its file system has no locks: set akosha_agent_state_dir to a directory on a local disk"
    return StateError(
        f"the state directory {directory} cannot be used: {error.strerror or error} ({error.filename or directory})",
        hint=cure,
    )
