"""Notes for the running agent: files that other processes of the same user write to a directory, one event each.

Notes are written atomically, and their names sort by the event's time. A file that is not a valid note (a link, another
user's file, too large, not an event) is moved to `rejected/`, which keeps the most recent ones for inspection.
"""

import asyncio
import errno
import itertools
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC
from pathlib import Path

import structlog

from agent.adapters import fs
from agent.domain.errors import StateError, WireError
from agent.domain.events import Event
from agent.ports import Codec

MAX_NOTE_BYTES = 64 * 1024
KEPT_REJECTED = 20

_SUFFIX = ".json"
_DRAFT_SECONDS = 3600.0
_NOT_A_NOTE = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
"""Errors of `open` that are permanent: no permission, a link, a socket."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = structlog.get_logger()


def is_note(name: str) -> bool:
    """Return whether a file of this name in the spool is a complete note."""
    return name.endswith(_SUFFIX) and not name.startswith(".")


class SpoolDirectory:
    """`agent.ports.Spool` on a directory. Other processes use `write`."""

    def __init__(self, directory: Path, codec: Codec) -> None:
        self._directory, self._codec = directory, codec
        self._rejected = directory / "rejected"
        self._unmovable: set[str] = set()  # rejected, but the move failed: logged once, then skipped
        self._numbers = itertools.count()

    async def waiting(self) -> Sequence[tuple[str, Event]]:
        """Return (note, event) for every note, oldest first; a missing directory has no notes.

        Raises a transient StateError if the directory cannot be read: the causes (no file descriptors left, a failing
        disk, permissions being changed) may pass.
        """
        return await asyncio.to_thread(self._waiting)

    async def count(self, matches: Callable[[Event], bool]) -> int:
        """Return the number of notes whose event matches. Invalid notes are neither counted nor moved.

        Raises StateError if the directory cannot be read.
        """
        return await asyncio.to_thread(self._count, matches)

    async def remove(self, note: str) -> None:
        """Remove a note; a missing one is not an error. Raises StateError, transient as in `waiting`."""
        await asyncio.to_thread(self._remove, note)

    async def write(self, event: Event) -> str:
        """Write a note and return its name. The note is on disk when this returns. Creates the directory if needed.

        Raises StateError if the note cannot be written, WireError if the event is larger than readers accept.
        """
        return await asyncio.to_thread(self._write, event)

    def _waiting(self) -> list[tuple[str, Event]]:
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error, transient=True) from error
        self._unmovable.intersection_update(names)
        notes = []
        for name in names:
            if name.endswith(fs.DRAFT_SUFFIX):
                self._sweep(name)
            elif is_note(name) and name not in self._unmovable:
                try:
                    notes.append((name, self._codec.decode(self._read(name))))
                except FileNotFoundError:
                    continue
                except WireError as error:
                    self._reject(name, str(error))
                except OSError as error:
                    if error.errno in _NOT_A_NOTE:
                        self._reject(name, str(error))
                    else:  # no file descriptors left, a failing disk: the note may be valid, and is read again later
                        _log.warning("note_unreadable", note=name, error=str(error))
        return notes

    def _count(self, matches: Callable[[Event], bool]) -> int:
        try:
            names = [path.name for path in self._directory.iterdir() if is_note(path.name)]
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._unusable(error, transient=True) from error
        count = 0
        for name in names:
            with suppress(OSError, WireError):
                count += matches(self._codec.decode(self._read(name)))
        return count

    def _read(self, name: str) -> bytes:
        """Return a note's bytes. Raises WireError if it is not a regular file of this user or too large, OSError."""
        path = self._directory / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # do not open devices and pipes
                raise ValueError("not a regular file")
            return fs.read_own(path, MAX_NOTE_BYTES)
        except ValueError as error:
            raise WireError(str(error)) from error

    def _reject(self, name: str, reason: str) -> None:
        _log.warning("note_rejected", note=name, reason=reason, kept_in=str(self._rejected))
        try:
            self._rejected.mkdir(mode=0o700, exist_ok=True)
            (self._directory / name).rename(self._rejected / name)
            self._trim()
        except OSError as error:
            self._unmovable.add(name)
            _log.warning("note_not_moved", note=name, error=str(error))

    def _trim(self) -> None:
        """Remove all but the most recently rejected files. A move sets a file's ctime."""
        rejected = sorted(self._rejected.iterdir(), key=lambda path: path.lstat().st_ctime_ns)
        for path in rejected[:-KEPT_REJECTED]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _sweep(self, name: str) -> None:
        """Remove a draft whose writer was killed. Compares its mtime with the clock: the disk is local."""
        path = self._directory / name
        with suppress(OSError):  # the writer has just renamed it, or it cannot be removed: both are harmless
            if abs(time.time() - path.lstat().st_mtime) > _DRAFT_SECONDS:
                path.unlink()

    def _remove(self, note: str) -> None:
        if not is_note(note) or "/" in note:
            raise StateError(f"{note!r} is not the name of a note")
        try:
            (self._directory / note).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error, transient=True) from error

    def _write(self, event: Event) -> str:
        data = self._codec.encode(event)
        if len(data) > MAX_NOTE_BYTES:
            raise WireError(f"a note of {len(data)} bytes is larger than the {MAX_NOTE_BYTES} allowed")
        # Sorts by time, then by order of writing within a process; random digits separate processes.
        stamp = f"{event.time.astimezone(UTC):%Y%m%dT%H%M%S.%f}"
        name = f"{stamp}-{next(self._numbers):06d}-{secrets.token_hex(4)}{_SUFFIX}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fs.write_atomically(self._directory / name, data)
        except OSError as error:
            raise self._unusable(error) from error
        return name

    def _unusable(self, error: OSError, *, transient: bool = False) -> StateError:
        if error.errno in _FULL:
            return StateError(
                f"the disk of the spool {self._directory} is full: {error.strerror}",
                hint="free some space there, or set akosha_agent_state_dir to a directory on a larger disk",
                transient=True,
            )
        return StateError(
            f"the spool {self._directory} cannot be used: {error.strerror or error}",
            hint="make it writable for this user and free space on its disk, or set akosha_agent_state_dir",
            transient=transient,
        )
