"""One process per state directory: a lock that the kernel keeps, and releases when its holder ends in any way.

The lock is flock on `agent.lock`; the text in the file only says which process holds it. The file is never removed: to
remove it would let two processes lock two files of one name.
"""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

from agent.adapters import fs
from agent.domain.errors import AlreadyRunning, StateError


def unusable(directory: Path, error: OSError) -> StateError:
    """Return the error to raise from `error`."""
    cure = "make it writable for this user and leave room on its disk, or set akosha_agent_state_dir"
    if error.errno == errno.ENOLCK:
        cure = "its file system has no locks: set akosha_agent_state_dir to a directory on a local disk"
    return StateError(
        f"the state directory {directory} cannot be used: {error.strerror or error} ({error.filename or directory})",
        hint=cure,
    )


_STOPPED = "Tt"
_PS_SECONDS = 2.0


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped (SIGSTOP, Ctrl-Z, a debugger). False where there is none. Blocks for moments."""
    try:
        # Its second field is the program's name in parentheses, which may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        state = _state_by_ps(pid)
    return state[:1] in tuple(_STOPPED)


def _state_by_ps(pid: int) -> str:
    """Where there is no /proc (macOS)."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, a number
            ["/bin/ps", "-o", "state=", "-p", str(int(pid))],
            capture_output=True,
            text=True,
            timeout=_PS_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


_TRIES = 15
_PAUSE_SECONDS = 0.02
"""A process that reads who the holder is has the lock for microseconds: it is refused only after 0.3 s of asking."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the state directory: process id, command, since when (0, "" and None where that is unknown)."""

    pid: int = 0
    command: str = ""
    since: datetime | None = None

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        since = f" since {self.since.astimezone():%Y-%m-%d %H:%M:%S}" if self.since else ""
        return f"process {self.pid} ({self.command or 'command unknown'}){since}"


class Lock:
    """The lock of the state directory `directory`; `now` tells the wall time that the holder signs with."""

    def __init__(self, directory: Path, now: Callable[[], datetime]) -> None:
        self._directory, self._now = directory, now
        self._file = directory / "agent.lock"

    @contextmanager
    def held(self, command: str, *, patient: bool = True) -> Iterator[None]:
        """Hold it. Raises AlreadyRunning where another process does, StateError where nobody can.

        Not `patient`, it asks once and never sleeps: for those who come again soon.
        """
        try:
            descriptor = fs.open_lock_file(self._file)
        except OSError as error:
            raise unusable(self._directory, error) from error
        try:
            self._take(descriptor, _TRIES if patient else 1)
            self._sign(descriptor, command)
            try:
                yield
            finally:
                with suppress(OSError):  # on a disk that is full or gone the lock itself is still released, just below
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def holder(self) -> Holder | None:
        """Return who holds it, or None. Creates nothing, and keeps nobody from taking it."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(self._directory, error) from error
        try:
            return None if fs.try_lock(descriptor, shared=True) else _signature(descriptor, _TRIES)
        except OSError as error:
            raise unusable(self._directory, error) from error
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int, tries: int) -> None:
        for more in reversed(range(tries)):
            try:
                if fs.try_lock(descriptor):
                    return
            except OSError as error:
                raise StateError(
                    f"{self._file} cannot be locked: {error.strerror}",
                    hint="set akosha_agent_state_dir to a directory on a local disk",
                ) from error
            if more:
                time.sleep(_PAUSE_SECONDS)
        holder = _signature(descriptor, tries)
        raise AlreadyRunning(
            f"the state directory {self._directory} is in use by {holder}",
            pid=holder.pid,
            command=holder.command,
            hint="stop that one first, or choose another --state-dir",
        )

    def _sign(self, descriptor: int, command: str) -> None:
        text = orjson.dumps({"pid": os.getpid(), "command": command, "since": self._now()})
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except OSError as error:
            raise unusable(self._directory, error) from error


def _signature(descriptor: int, tries: int) -> Holder:
    """Read who signed. Between taking and signing there is nothing to read, or half of it, for a moment."""
    for more in reversed(range(tries)):
        try:
            signed = orjson.loads(os.pread(descriptor, 4096, 0))
            return Holder(int(signed["pid"]), str(signed["command"]), datetime.fromisoformat(signed["since"]))
        except (ValueError, KeyError, TypeError):
            if more:
                time.sleep(_PAUSE_SECONDS)
    return Holder()
