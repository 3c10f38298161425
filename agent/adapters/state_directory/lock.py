"""One process per state directory: an flock on `agent.lock`, which the kernel releases when the process ends.

The text in the file only describes the process that holds the lock. The file is never removed: otherwise two processes
could lock two different files of that name.
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

_STOPPED = "Tt"
_PS_SECONDS = 2.0

_TRIES = 15
_PAUSE_SECONDS = 0.02
"""Retry for 0.3 s before failing: `Lock.holder` in another process takes the lock for microseconds."""


def unusable(directory: Path, error: OSError) -> StateError:
    """Return the StateError for an OSError in the state directory."""
    hint = "make it writable for this user and free space on its disk, or set akosha_agent_state_dir"
    if error.errno == errno.ENOLCK:
        hint = "its file system has no locks: set akosha_agent_state_dir to a directory on a local disk"
    return StateError(
        f"the state directory {directory} cannot be used: {error.strerror or error} ({error.filename or directory})",
        hint=hint,
    )


def is_suspended(pid: int) -> bool:
    """Return whether a process is suspended (SIGSTOP, Ctrl-Z, a debugger); False if it does not exist. Blocks."""
    try:
        # The second field is the program's name in parentheses, which can contain any character.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        state = _state_by_ps(pid)
    return state[:1] in tuple(_STOPPED)


def _state_by_ps(pid: int) -> str:
    """Return the state of a process on systems without /proc (macOS)."""
    try:
        result = subprocess.run(  # noqa: S603 - a fixed program, a number
            ["/bin/ps", "-o", "state=", "-p", str(int(pid))],
            capture_output=True,
            text=True,
            timeout=_PS_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds the state directory. `pid`, `command` and `since` are 0, "" and None if unknown."""

    pid: int = 0
    command: str = ""
    since: datetime | None = None

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        since = f" since {self.since.astimezone():%Y-%m-%d %H:%M:%S}" if self.since else ""
        return f"process {self.pid} ({self.command or 'command unknown'}){since}"


class Lock:
    """The lock of a state directory. `now` returns the wall time, timezone-aware."""

    def __init__(self, directory: Path, now: Callable[[], datetime]) -> None:
        self._directory, self._now = directory, now
        self._file = directory / "agent.lock"

    @contextmanager
    def hold(self, command: str, *, retry: bool = True) -> Iterator[None]:
        """Hold the lock within the block.

        Raises AlreadyRunning if another process holds it, StateError if the file cannot be locked. Without `retry` it
        tries once and never sleeps; callers that try again soon use this.
        """
        try:
            descriptor = fs.open_lock_file(self._file)
        except OSError as error:
            raise unusable(self._directory, error) from error
        try:
            self._acquire(descriptor, _TRIES if retry else 1)
            self._write_holder(descriptor, command)
            try:
                yield
            finally:
                with suppress(OSError):  # the disk may be full or unmounted: closing the file releases the lock anyway
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def holder(self) -> Holder | None:
        """Return the process that holds the lock, or None. Creates nothing and does not block other processes."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(self._directory, error) from error
        try:
            return None if fs.try_lock(descriptor, shared=True) else _read_holder(descriptor, _TRIES)
        except OSError as error:
            raise unusable(self._directory, error) from error
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int, tries: int) -> None:
        for remaining in reversed(range(tries)):
            try:
                if fs.try_lock(descriptor):
                    return
            except OSError as error:
                raise StateError(
                    f"{self._file} cannot be locked: {error.strerror}",
                    hint="set akosha_agent_state_dir to a directory on a local disk",
                ) from error
            if remaining:
                time.sleep(_PAUSE_SECONDS)
        holder = _read_holder(descriptor, tries)
        raise AlreadyRunning(
            f"the state directory {self._directory} is in use by {holder}",
            pid=holder.pid,
            command=holder.command,
            hint="stop that process first; a second agent on this machine needs an akosha_system_id and a --state-dir "
            "of its own",
        )

    def _write_holder(self, descriptor: int, command: str) -> None:
        text = orjson.dumps({"pid": os.getpid(), "command": command, "since": self._now()})
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except OSError as error:
            raise unusable(self._directory, error) from error


def _read_holder(descriptor: int, tries: int) -> Holder:
    """Return the holder that the file describes.

    Retries, because the text is missing or incomplete for a moment after the lock is acquired.
    """
    for remaining in reversed(range(tries)):
        try:
            document = orjson.loads(os.pread(descriptor, 4096, 0))
            return Holder(int(document["pid"]), str(document["command"]), datetime.fromisoformat(document["since"]))
        except (ValueError, KeyError, TypeError):
            if remaining:
                time.sleep(_PAUSE_SECONDS)
    return Holder()
