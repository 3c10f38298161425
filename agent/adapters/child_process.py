"""Child processes, and requests to them: the parent's side.

A child starts with a clean environment, and is always ended and reaped. `child_output` is the child's side.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TypeVar

import orjson

from agent.adapters.child_output import BEAT, HEAD_BYTES, length_of
from agent.domain.memories import Json
from agent.domain.plain_text import signal_name

T = TypeVar("T")

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_PRIVATE = ("AWS_", "AKOSHA_", "SESSION_BUDDY_")
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BUFFER_BYTES = 2**20
_DRAINED_BYTES = 2**16

_reaping: set[asyncio.Task[None]] = set()

STALL_SECONDS = 60.0
"""Maximum time without a frame while an answer is outstanding. A child sends a heartbeat every second."""

_SLICES = 6
"""Number of parts of STALL_SECONDS: a suspension of this process uses up one part only."""

_EXIT_SECONDS = 5.0


async def start(module: str, *arguments: str, cwd: Path, variables: Mapping[str, str] = NO_VARIABLES) -> Process:
    """Run a module of this package in a child process, with more environment variables. Raises OSError."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    # -P: do not import a package of our name from the working directory.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", module, *arguments,
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={**inherited, **variables}, cwd=cwd, limit=_BUFFER_BYTES,
    )  # fmt: skip


async def end(child: Process) -> None:
    """Kill the child if it still runs, and wait until it is reaped. If cancelled, it is reaped in the background."""
    if child.returncode is None:
        child.kill()
    task = asyncio.create_task(_reap(child), name="child-reap")
    _reaping.add(task)
    task.add_done_callback(_reaping.discard)
    await asyncio.shield(task)


async def _reap(child: Process) -> None:
    # Drain the output: until the pipe is closed, asyncio does not report the process as ended.
    while child.stdout is not None and await child.stdout.read(_DRAINED_BYTES):
        pass
    await child.wait()
    if child.stdin is not None:
        child.stdin.close()


def signal_of(status: int) -> tuple[str, bool] | None:
    """Return the signal that ended a child, and whether another process sent it; None for a normal exit."""
    if status >= 0:
        return None
    return signal_name(-status), -status in _KILLED_FROM_OUTSIDE


class CommandFailed(Exception):  # noqa: N818 - the caller decides what it means
    """The child answered that the command failed. The text is its message, without paths."""


class NoAnswer(Exception):  # noqa: N818 - the caller decides what it means
    """The child did not answer.

    `crashed`: the child crashed, and the text is the name of the signal. `killed`: another process ended the child.
    `too_slow`: it made progress, and was not done in time.
    """

    def __init__(self, reason: str, *, crashed: bool = False, killed: bool = False, too_slow: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.crashed, self.killed, self.too_slow = reason, crashed, killed, too_slow


class Exchange:
    """Sends commands to a child, one at a time. After a failed or cancelled command, no further one is sent."""

    def __init__(self, child: Process, timeout_seconds: float, stall_seconds: float = STALL_SECONDS) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._input = child.stdin
        self._output = child.stdout
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds
        self._usable = True

    @property
    def is_usable(self) -> bool:
        """Whether the child has answered all commands without an error."""
        return self._usable

    async def ask(self, command: bytes, name: str, read: Callable[[Json], T]) -> T:
        """Send a command, and return what `read` makes of the field `name` of the answer.

        Raises CommandFailed; NoAnswer, also if the answer is invalid (`read` raises ValueError or TypeError): a damaged
        file may have damaged the child's memory.
        """
        if not self._usable:
            raise NoAnswer("was interrupted before")
        self._input.write(command + b"\n")
        self._usable = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with suppress(ConnectionError):  # the child has ended: its output is still to be read
                    await self._input.drain()
                while (head := await self._head()) == BEAT:
                    pass
                answer = await self._output.readexactly(length_of(head))
        except TimeoutError as error:
            raise NoAnswer(f"was not done after {self._timeout_seconds:g} s", too_slow=True) from error
        except asyncio.IncompleteReadError as error:
            await self._raise_exit_reason(error)
        try:
            document = checked(orjson.loads(answer), dict)
            if "error" in document:
                raise CommandFailed(checked(document["error"], str))
            found = read(document[name])
        except (ValueError, TypeError, KeyError) as error:
            raise NoAnswer("sent an invalid answer") from error
        self._usable = True
        return found

    async def _head(self) -> bytes:
        """Return the head of the next frame. Raises NoAnswer if there is none for `stall_seconds`."""
        for _ in range(_SLICES):
            try:
                # If cancelled, `readexactly` leaves the received bytes in the buffer.
                async with asyncio.timeout(self._stall_seconds / _SLICES):
                    return await self._output.readexactly(HEAD_BYTES)
            except TimeoutError:
                continue
        raise NoAnswer(f"made no progress for {self._stall_seconds:g} s")

    async def _raise_exit_reason(self, error: Exception) -> NoReturn:
        """Raise NoAnswer with the way in which the child ended."""
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                status = await self._child.wait()
        except TimeoutError:
            status = 0  # it closed its output and still runs: the owner of the child ends it
        if ended := signal_of(status):
            name, killed = ended
            raise NoAnswer(f"was killed ({name})" if killed else name, crashed=not killed, killed=killed) from error
        raise NoAnswer(f"ended early (exit status {status})") from error


def checked(value: Json, kind: type[T]) -> T:
    """Return a value of an answer. Raises TypeError if it is of another type."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value
