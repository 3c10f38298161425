"""The native watch: a thread that waits in watchfiles and rings a signal on the event loop."""

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from watchfiles import Change, watch

from agent.adapters.watcher.scan import Root, root_of

_STOP_SECONDS = 5.0

_UNDECODABLE = "Unable to decode path"
"""How watchfiles reports a change of a file whose name is not UTF-8. The error ends the watch."""

_log = structlog.get_logger()


@dataclass(slots=True)
class WatchSignal:
    """Rung by the native thread and by a timer.

    `names` were reported to change since the last signal. `failed` says why the thread ended, "" where it is not at
    fault. `until` is when (monotonic) listening in another way should be tried.
    """

    rung: asyncio.Event = field(default_factory=asyncio.Event)
    names: frozenset[str] = frozenset()
    listening: bool = False
    until: float = math.inf
    failed: str | None = None


class Native:
    """A watchfiles thread, for as long as `root` is the directory at `path`; sets the signal on the running loop."""

    def __init__(
        self, path: Path, root: Root, wanted: Callable[[str], bool], step_ms: int, signal: WatchSignal
    ) -> None:
        self._path, self._root, self._wanted, self._step_ms, self._signal = path, root, wanted, step_ms, signal
        self._real = ""
        self._stopped = False
        self._told = False
        self._undecodable = False
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._run, name=f"watch-{path.name}", daemon=True).start()

    async def stop(self) -> None:
        """See the thread end, which it does at its next step."""
        self._stopped = True
        with suppress(TimeoutError):  # a file system that hangs; the thread ends with the process
            async with asyncio.timeout(_STOP_SECONDS):
                await self._ended.wait()

    def is_set(self) -> bool:
        """Asked by watchfiles at each step: is it over? The first time, the watch has just been set up."""
        if not self._told:
            self._told = True
            self._call(self._ring, frozenset())
        try:
            return self._stopped or root_of(self._path) != self._root
        except OSError:
            return True

    def _run(self) -> None:
        reason = "the native watch broke"
        try:
            self._real = os.path.realpath(self._path)
            while self._watch_until_undecodable():
                # Ringing again once the watch is set up leads to a look, which finds what changed in between.
                self._told = False
                time.sleep(self._step_ms / 1000)
            reason = ""
        except FileNotFoundError:
            reason = ""
            time.sleep(self._step_ms / 1000)  # it went away just now; a look at once may not see it yet
        except (OSError, RuntimeError, UnicodeError) as error:  # the native layer's own is a RuntimeError
            reason = str(error)
        finally:
            self._call(self._end, reason)

    def _watch_until_undecodable(self) -> bool:
        """Watch; return True where a file name that is not UTF-8 ended the watch, False where it is over."""
        try:
            for changes in watch(
                self._real,
                watch_filter=self._concerns,
                debounce=self._step_ms,
                step=self._step_ms,
                stop_event=self,
                rust_timeout=0,
                raise_interrupt=False,
                force_polling=False,
                recursive=False,
            ):
                self._call(self._ring, frozenset(os.path.basename(path) for _, path in changes))  # noqa: PTH119
        except RuntimeError as error:
            if not str(error).startswith(_UNDECODABLE):
                raise
            if not self._undecodable:
                self._undecodable = True
                hint = "rename the file: watching is native again at once, and databases are found all the same"
                _log.warning("file_name_not_unicode", directory=str(self._path), error=str(error), hint=hint)
            return not self._stopped
        return False

    def _concerns(self, change: Change, path: str) -> bool:
        if path == self._real and change is Change.deleted:
            self._stopped = True  # also where another has its inode by now
        folder, name = os.path.split(path)
        return folder == self._real and self._wanted(name)

    def _ring(self, names: frozenset[str]) -> None:
        self._signal.listening = True
        self._signal.names |= names
        self._signal.rung.set()

    def _end(self, reason: str) -> None:
        self._signal.failed = reason
        self._signal.rung.set()
        self._ended.set()

    def _call(self, tell: Callable[..., None], what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: no reader is left
            self._loop.call_soon_threadsafe(tell, what)
