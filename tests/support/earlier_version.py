"""An earlier version of the agent, unpacked from the history of this repository."""

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

COMMIT = "53ebc98"
"""A version with an earlier ledger, which knows neither owner.json nor patches."""

_REPOSITORY = Path(__file__).parents[2]


class NotInCloneError(Exception):
    """Git is not installed, or this clone does not have the commit."""


def earlier_version(folder: Path) -> tuple[str, ...]:
    """Unpack the earlier version into a folder; return the words that start it. Raises NotInCloneError."""
    try:
        packed = subprocess.run(
            ["git", "-C", str(_REPOSITORY), "archive", COMMIT, "agent"], check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotInCloneError(f"needs git and the commit {COMMIT}, which a shallow clone lacks") from error
    with tarfile.open(fileobj=BytesIO(packed)) as file:
        file.extractall(folder, filter="data")
    return "env", f"PYTHONPATH={folder}", sys.executable, "-m", "agent"
