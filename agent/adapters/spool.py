"""Notes for the running agent: one file each, left in the state directory by other processes of the same user.

A note appears whole (written aside, synced, renamed) and its name sorts by the event's time. What is no note of ours
(a link, somebody else's file, too large, not an event) goes to `rejected/`, where the last few are kept to look at.
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
_NO_NOTE = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
"""What opening says of a file that will never be a note: closed to us, a link, a socket."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = structlog.get_logger()


def is_note(name: str) -> bool:
    """Say whether a file of this name in the spool is a note: what is being written, or was rejected, is none."""
    return name.endswith(_SUFFIX) and not name.startswith(".")


class SpoolDirectory:
    """`agent.ports.Spool` on the directory `directory`, and the other side of it: `write`."""

    def __init__(self, directory: Path, codec: Codec) -> None:
        self._directory, self._codec = directory, codec
        self._rejected = directory / "rejected"
        self._left: set[str] = set()  # rejected, but could not be moved away: said once, and passed over from then on
        self._numbers = itertools.count()

    async def waiting(self) -> Sequence[tuple[str, Event]]:
        """As the port says. A directory that is not there holds no notes.

        Raises StateError where it cannot be read, transient: no descriptors left, a disk that fails, or its owner at
        work, all of which pass.
        """
        return await asyncio.to_thread(self._waiting)

    async def count(self, wanted: Callable[[Event], bool]) -> int:
        """Return how many notes hold an event that is wanted. Nothing is set aside; what cannot be read is not counted.

        Raises StateError where the directory cannot be read.
        """
        return await asyncio.to_thread(self._count, wanted)

    async def remove(self, note: str) -> None:
        """As the port says; one that is gone already is no error. Raises StateError, transient as above."""
        await asyncio.to_thread(self._remove, note)

    async def write(self, event: Event) -> str:
        """Leave a note and return its name; it is on disk then. Makes the directory where there is none.

        Raises StateError where it cannot be written, WireError for an event that no reader would take.
        """
        return await asyncio.to_thread(self._write, event)

    def _waiting(self) -> list[tuple[str, Event]]:
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error, transient=True) from error
        self._left.intersection_update(names)
        notes = []
        for name in names:
            if name.endswith(fs.DRAFT_SUFFIX):
                self._sweep(name)
            elif is_note(name) and name not in self._left:
                try:
                    notes.append((name, self._codec.decode(self._read(name))))
                except FileNotFoundError:
                    continue
                except WireError as error:
                    self._reject(name, str(error))
                except OSError as error:
                    if error.errno in _NO_NOTE:
                        self._reject(name, str(error))
                    else:  # no descriptors left, a disk that fails: the note may be good, and is tried again
                        _log.warning("note_unreadable", note=name, error=str(error))
        return notes

    def _count(self, wanted: Callable[[Event], bool]) -> int:
        try:
            names = [path.name for path in self._directory.iterdir() if is_note(path.name)]
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._unusable(error, transient=True) from error
        found = 0
        for name in names:
            with suppress(OSError, WireError):
                found += wanted(self._codec.decode(self._read(name)))
        return found

    def _read(self, name: str) -> bytes:
        """Return a note's bytes. Raises WireError for what is not a regular file of ours and of its size, OSError."""
        path = self._directory / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # it is not even opened
                raise ValueError("not a regular file")
            return fs.read_own(path, MAX_NOTE_BYTES)
        except ValueError as error:
            raise WireError(str(error)) from error

    def _reject(self, name: str, why: str) -> None:
        _log.warning("note_rejected", note=name, reason=why, kept_in=str(self._rejected))
        try:
            self._rejected.mkdir(mode=0o700, exist_ok=True)
            (self._directory / name).rename(self._rejected / name)
            self._trim()
        except OSError as error:
            self._left.add(name)
            _log.warning("note_not_moved", note=name, error=str(error))

    def _trim(self) -> None:
        """Keep the last few: the time of the last change of status is that of the move."""
        kept = sorted(self._rejected.iterdir(), key=lambda path: path.lstat().st_ctime_ns)
        for path in kept[:-KEPT_REJECTED]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _sweep(self, name: str) -> None:
        """Remove a draft whose writer was killed long ago. By the disk's time, which is the machine's."""
        path = self._directory / name
        with suppress(OSError):  # it has become a note just now, or stays: neither harms
            if abs(time.time() - path.lstat().st_mtime) > _DRAFT_SECONDS:
                path.unlink()

    def _remove(self, note: str) -> None:
        if not is_note(note) or "/" in note:
            raise StateError(f"{note!r} is no note's name")
        try:
            (self._directory / note).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error, transient=True) from error

    def _write(self, event: Event) -> str:
        data = self._codec.encode(event)
        if len(data) > MAX_NOTE_BYTES:
            raise WireError(f"a note of {len(data)} bytes is larger than the {MAX_NOTE_BYTES} allowed")
        # In order of time, then of writing within one process; distinguished from other processes by random digits.
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
                f"the spool {self._directory} has no room for a note of {MAX_NOTE_BYTES:,} bytes: {error.strerror}",
                hint="free some space there, or let akosha_agent_state_dir name a directory on a bigger disk",
                transient=True,
            )
        return StateError(
            f"the spool {self._directory} cannot be used: {error.strerror or error}",
            hint="make it writable for this user and leave room on its disk, or set akosha_agent_state_dir",
            transient=transient,
        )
