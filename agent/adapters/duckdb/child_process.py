"""Child processes that have the engine, and requests to them: the parent's side.

A child is started with a clean environment, and ended and reaped whatever happens. One that has checked a copy may
wait, warm, for the next reader of that copy: starting takes longer than either.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import orjson

from agent.adapters.duckdb.frames import BEAT, HEAD_BYTES, length_of
from agent.domain.memories import Json

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


class WarmChildren:
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


STALL_SECONDS = 60.0
"""How long a child may be silent while it owes an answer: it tells of progress every second."""

_SLICES = 6
"""In so many parts the silence is counted: where this process itself was stopped, or slept, that is one part."""

_GOING_SECONDS = 5.0


class Unreadable(Exception):  # noqa: N818 - an answer, in the engine's words
    """The engine is well, and cannot do it: its own words, without paths."""


class Unanswered(Exception):  # noqa: N818 - a turn of events; what it means is the asker's to say
    """There was no answer. `crashed`: the engine came down by itself, and the text is the signal's name."""

    def __init__(self, what: str, *, crashed: bool = False) -> None:
        super().__init__(what)
        self.what, self.crashed = what, crashed


class Exchange:
    """Question and answer, in lock-step. After one that was not carried through, nothing more is asked."""

    def __init__(self, child: Process, timeout_seconds: float, stall_seconds: float = STALL_SECONDS) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._questions = child.stdin
        self._answers = child.stdout
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds
        self._sound = True

    async def ask(self, command: bytes, name: str) -> Json:
        """Ask, and return what the answer holds under `name`. Raises Unreadable, Unanswered."""
        if not self._sound:
            raise Unanswered("was broken off before")
        self._questions.write(command + b"\n")
        self._sound = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with suppress(ConnectionError):  # it has ended: what it said before is still to be read
                    await self._questions.drain()
                while (head := await self._head()) == BEAT:
                    pass
                document = orjson.loads(await self._answers.readexactly(length_of(head)))
        except TimeoutError as error:
            raise Unanswered(f"was not done after {self._timeout_seconds:g} s") from error
        except asyncio.IncompleteReadError as error:
            await self._died(error)
        if "error" in document:
            raise Unreadable(document["error"])
        self._sound = True
        found: Json = document[name]
        return found

    async def _head(self) -> bytes:
        """Return the next frame's head. Raises Unanswered where none comes for `stall_seconds`."""
        for _ in range(_SLICES):
            try:
                # Cancelled, it leaves what has come in the buffer.
                async with asyncio.timeout(self._stall_seconds / _SLICES):
                    return await self._answers.readexactly(HEAD_BYTES)
            except TimeoutError:
                continue
        raise Unanswered(f"made no progress for {self._stall_seconds:g} s")

    async def _died(self, error: Exception) -> NoReturn:
        """Tell how it ended."""
        try:
            async with asyncio.timeout(_GOING_SECONDS):
                status = await self._child.wait()
        except TimeoutError:
            status = 0  # it shut its mouth and went on: `open` ends it
        if ended := signal_of(status):
            name, killed = ended
            raise Unanswered(f"was killed ({name})" if killed else name, crashed=not killed) from error
        raise Unanswered(f"ended early (exit status {status})") from error
