"""Children of this process that have the engine: started with a clean environment, ended and reaped whatever happens.

One that has checked a copy may wait, warm, for whoever reads memories out of that copy next: starting takes longer than
either.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

CHILD = "agent.adapters.duckdb.child"

MOST_WARM = 2

_PRIVATE = ("AWS_", "AKOSHA_", "SESSION_BUDDY_")
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BUFFER_BYTES = 2**20
_DRAINED_BYTES = 2**16

_reaping: set[asyncio.Task[None]] = set()


async def start(copy: Path) -> Process:
    """Start a child on a copy, in the copy's folder. Raises OSError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    # -P: the working directory must not be able to supply another package of our name.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", CHILD, str(copy),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, cwd=copy.parent, limit=_BUFFER_BYTES,
    )  # fmt: skip


async def end(child: Process) -> None:
    """Kill the child if it still runs; return when it is gone. Cancelled, it goes on by itself."""
    if child.returncode is None:
        child.kill()
    task = asyncio.create_task(_reap(child), name="child-reap")
    _reaping.add(task)
    task.add_done_callback(_reaping.discard)
    await asyncio.shield(task)


class Warm:
    """Children that wait, by the copy they have checked. Each is ended with its copy, or when a third comes."""

    def __init__(self) -> None:
        self._waiting: dict[Path, Process] = {}

    async def keep(self, copy: Path, child: Process) -> None:
        """Let a child wait."""
        self._waiting[copy] = child
        if len(self._waiting) > MOST_WARM:
            await end(self._waiting.pop(next(iter(self._waiting))))

    def take(self, copy: Path) -> Process | None:
        """Return the child that waits for a copy, None where there is none, or it has ended: it is the caller's now."""
        child = self._waiting.pop(copy, None)
        return child if child is not None and child.returncode is None else None

    async def end_in(self, folder: Path | None = None) -> None:
        """End those that wait for copies in a folder, or all."""
        for copy in [copy for copy in self._waiting if folder is None or copy.parent == folder]:
            await end(self._waiting.pop(copy))


async def _reap(child: Process) -> None:
    # What it had said and nobody read must be read: until then its pipe is open, and it does not count as ended.
    while child.stdout is not None and await child.stdout.read(_DRAINED_BYTES):
        pass
    await child.wait()
    if child.stdin is not None:
        child.stdin.close()


def signal_of(status: int) -> tuple[str, bool] | None:
    """Return the name of the signal that ended a child, and whether somebody sent it; None for a plain exit."""
    if status >= 0:
        return None
    return signal.Signals(-status).name, -status in _KILLED_FROM_OUTSIDE
