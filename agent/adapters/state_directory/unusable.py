"""What the operating system says against a state directory, in the agent's words."""

from pathlib import Path

from agent.domain.errors import StateError


def unusable(directory: Path, error: OSError) -> StateError:
    """Return the error to raise from `error`."""
    return StateError(
        f"the state directory {directory} cannot be used: {error.strerror or error} ({error.filename or directory})",
        hint="make it writable for this user and leave room on its disk, or set akosha_agent_state_dir",
    )
