"""The native watch on Linux: inotify, read by the event loop.

It has no thread and no timer, so it does not wake the process while nothing changes, and it reports a change at once.
watchfiles, which uses inotify too, looks for changes at fixed intervals.
"""

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from agent.adapters.watcher.native import WatchSignal
from agent.adapters.watcher.scan import Root, root_of

STEP_MS = 250
"""Pause after a report, so that a database that is written all the time does not keep the agent busy."""

MOST_UNWANTED = 8
"""Pause after so many reads without a wanted name: a log file may be written all the time. A note causes two."""

_READ_BYTES = 64 * 1024
_HEADER = struct.Struct("iIII")

# linux/inotify.h
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _Q_OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _MASK_ADD = 0x1000000, 0x2000000, 0x20000000

_REPLACED = _DELETE_SELF | _MOVE_SELF
_FILES = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_ENDED = _REPLACED | _UNMOUNT | _IGNORED


class Inotify:
    """`NativeWatch` on one inotify instance. Ends if the directory, or a directory or link above it, is replaced."""

    def __init__(
        self, path: Path, root: Root, wanted: Callable[[str], bool], step_ms: int | None, signal: WatchSignal
    ) -> None:
        self._wanted, self._signal = wanted, signal
        self._step = (STEP_MS if step_ms is None else step_ms) / 1000
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._unwanted = 0
        # In a thread, because a mount that hangs must not block the event loop.
        self._loop.run_in_executor(None, _open, path, root).add_done_callback(self._opened)

    @property
    def max_lag(self) -> float:
        return self._step

    async def stop(self) -> None:
        """Close the instance, or have it closed once it is open."""
        self._stopped = True
        self._close()

    def _opened(self, opening: "asyncio.Future[int | None]") -> None:
        if opening.cancelled():
            return
        if (error := opening.exception()) is not None:
            self._signal.end((isinstance(error, OSError) and error.strerror) or str(error))
            return
        self._descriptor = opening.result()
        if self._stopped:
            self._close()
        elif self._descriptor is None:
            self._signal.end("")
        else:
            self._loop.add_reader(self._descriptor, self._read)
            self._signal.report(frozenset())

    def _read(self) -> None:
        assert self._descriptor is not None
        try:
            events = list(_events(os.read(self._descriptor, _READ_BYTES)))
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error.strerror or str(error))
            return
        names = frozenset(name for mask, name in events if mask & _FILES and name and self._wanted(name))
        if any(mask & _ENDED for mask, _ in events):
            self._signal.report(names)
            self._end("")
        elif names or any(mask & _Q_OVERFLOW for mask, _ in events):
            self._signal.report(names)  # the signal causes a scan, which finds what an overflow has lost
            self._pause()
        else:
            self._unwanted += 1
            if self._unwanted >= MOST_UNWANTED:
                self._pause()

    def _pause(self) -> None:
        assert self._descriptor is not None
        self._unwanted = 0
        self._loop.remove_reader(self._descriptor)
        self._timer = self._loop.call_later(self._step, self._loop.add_reader, self._descriptor, self._read)

    def _end(self, reason: str) -> None:
        self._close()
        self._signal.end(reason)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _open(path: Path, root: Root) -> int | None:
    """Return an inotify instance that watches the directory; None if another one is at that path. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = _checked(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _checked(library.inotify_add_watch(descriptor, os.fsencode(path), _FILES | _REPLACED | _ONLYDIR))
        for each in _passed(path):  # a watch that is refused (permissions, limits) is replaced by the rescan
            library.inotify_add_watch(descriptor, os.fsencode(each), _REPLACED | _DONT_FOLLOW | _MASK_ADD)
        if root_of(path) == root:
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        text = "no inotify watch is left" if number == errno.ENOSPC else os.strerror(number)
        raise OSError(number, text)
    return result


def _passed(path: Path) -> Iterator[Path]:
    """Yield the directories and symbolic links that the kernel passes when it looks up this path."""
    pending, passed = [path.absolute()], set[Path]()
    while pending:
        last = pending.pop()
        for each in (last, *last.parents):
            if each not in passed:
                passed.add(each)
                yield each
                with suppress(OSError):  # not a link
                    pending.append(each.parent / each.readlink())


def _events(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield the mask and the name of each event; the name is "" if the event is about the watched directory itself."""
    offset = 0
    while offset < len(data):
        _, mask, _, length = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size + length
        yield mask, os.fsdecode(data[offset - length : offset].rstrip(b"\0"))
