"""Child processes that run DuckDB.

A process needs 0.2 s of processor time to start and 60 MiB of memory, DuckDB needs 0.02 s to open a copy. So one child
serves all copies of an attempt, one after the other, and is kept for a while for the next attempt. Each copy is opened
in a DuckDB instance of its own, which can access the folder of that copy only. A child that has returned an error, or
was interrupted, is ended: a damaged file may have damaged its memory.
"""

import asyncio
import json
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

from agent.adapters import child_process
from agent.adapters.child_process import CommandFailed, Exchange, NoAnswer, checked, end
from agent.adapters.duckdb.child_protocol import COPY
from agent.domain.memories import Json
from agent.domain.parsing import LARGEST_NUMBER
from agent.ports import Clock

CHILD = "agent.adapters.duckdb.child"

IDLE_SECONDS = 60.0
"""How long a child waits for the next attempt. The retry of an attempt, the next method on the route and the end of a
session often follow within that time; two syncs of changed files are akosha_agent_min_interval_seconds apart."""

_CLOSE_SECONDS = 30.0

_ROOT = Path("/")

_NO_COPY = Path("none")
"""Argument of a child that gets its copy later."""


async def start(copy: Path) -> Process:
    """Start a child for a copy. Raises OSError."""
    # The folder of the copy may be removed before the child ends.
    return await child_process.start(CHILD, str(copy), cwd=_ROOT)


class WarmChild:
    """At most one idle child. It is ended after IDLE_SECONDS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._idle: Process | None = None
        self._copy: Path | None = None
        self._expiry: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Start an idle child if there is none, so that `take` need not wait for it. `take` reports a failure."""
        if self._idle is None:
            with suppress(OSError):
                child = await start(_NO_COPY)
                await self.end()  # at most one is idle
                self._set_idle(child, None)

    async def take(self, copy: Path) -> Process:
        """Return a child for a copy, which the caller now owns: the idle one or a new one. Raises OSError."""
        child, opened = self._idle, self._copy
        self._clear()
        if child is None:
            return await start(copy)
        if child.returncode is None and (opened == copy or await _use(child, copy)):
            return child
        await end(child)
        return await start(copy)

    async def keep(self, child: Process, copy: Path | None = None) -> None:
        """Keep a child that has answered everything without an error; with its copy open, or without one."""
        if self._idle is not None or not (copy or await _use(child, None)):
            await end(child)
            return
        self._set_idle(child, copy)

    async def release(self, folder: Path) -> None:
        """Close the copy that the idle child has open if it is in this folder, which can then be removed."""
        if self._copy is not None and self._copy.parent == folder and (child := self._idle) is not None:
            self._clear()
            await self.keep(child)

    async def end(self) -> None:
        """End the idle child."""
        child = self._idle
        self._clear()
        if child is not None:
            await end(child)

    def _set_idle(self, child: Process, copy: Path | None) -> None:
        self._idle, self._copy = child, copy
        self._expiry = asyncio.create_task(self._expire(), name="duckdb-idle")

    def _clear(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._idle = self._copy = self._expiry = None

    async def _expire(self) -> None:
        await self._clock.sleep(IDLE_SECONDS)
        self._expiry = None
        await self.end()


async def _use(child: Process, copy: Path | None) -> bool:
    """Make a child close its copy, and use another one or none; return whether it has. If cancelled, end it."""
    command = b"%s %s" % (COPY, json.dumps(str(copy) if copy else "").encode())  # a path may not be UTF-8
    try:
        return await Exchange(child, _CLOSE_SECONDS).ask(command, "copy", lambda done: checked(done, bool))
    except (CommandFailed, NoAnswer):
        return False
    except BaseException:
        await end(child)
        raise


def counts(value: Json) -> dict[str, int]:
    """Return the number of rows per table. Raises TypeError, or ValueError for a number that no manifest can have."""
    found = {table: checked(count, int) for table, count in checked(value, dict).items()}
    if not all(0 <= count <= LARGEST_NUMBER for count in found.values()):
        raise ValueError("a number is out of range")
    return found
