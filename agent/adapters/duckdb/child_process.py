"""Child processes that run DuckDB.

A child that has verified a copy can be kept for the next reader of that copy: starting a child takes longer than
verifying or reading.
"""

from asyncio.subprocess import Process
from pathlib import Path

from agent.adapters import child_process
from agent.adapters.child_process import checked, end
from agent.domain.manifest import LARGEST_NUMBER
from agent.domain.memories import Json

CHILD = "agent.adapters.duckdb.child"

MOST_WARM = 2


async def start(copy: Path) -> Process:
    """Start a child for a copy, in the copy's folder. Raises OSError."""
    return await child_process.start(CHILD, str(copy), cwd=copy.parent)


class WarmChildren:
    """Idle children by the copy that they have verified. A child is ended with its copy, or when there are too many."""

    def __init__(self) -> None:
        self._waiting: dict[Path, Process] = {}

    async def keep(self, copy: Path, child: Process) -> None:
        """Keep a child for the next reader of the copy."""
        self._waiting[copy] = child
        if len(self._waiting) > MOST_WARM:
            await end(self._waiting.pop(next(iter(self._waiting))))

    def take(self, copy: Path) -> Process | None:
        """Return the running child of a copy, which the caller now owns, or None."""
        child = self._waiting.pop(copy, None)
        return child if child is not None and child.returncode is None else None

    async def end_in(self, folder: Path | None = None) -> None:
        """End the children of the copies in a folder, or all."""
        for copy in [copy for copy in self._waiting if folder is None or copy.parent == folder]:
            await end(self._waiting.pop(copy))


def counts(value: Json) -> dict[str, int]:
    """Return the number of rows per table. Raises TypeError, or ValueError for a number that no manifest can have."""
    found = {table: checked(count, int) for table, count in checked(value, dict).items()}
    if not all(0 <= count <= LARGEST_NUMBER for count in found.values()):
        raise ValueError("a number is out of range")
    return found
