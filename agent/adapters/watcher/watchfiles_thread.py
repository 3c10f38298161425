"""The native watch where there is no inotify: a thread that waits in watchfiles (FSEvents on macOS).

watchfiles sleeps for a step, then looks for changes and whether it must end. It reports changes that are followed by a
step without another one, so a change is reported after one to two steps.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from watchfiles import Change, watch

from agent.adapters.watcher.native import WatchSignal
from agent.adapters.watcher.scan import Root, root_of

STEP_MS = 1000
"""Half the default quiet time, so that the watch does not delay a sync."""

_STOP_SECONDS = 5.0

_UNDECODABLE = "Unable to decode path"
"""The start of watchfiles' error for a changed file whose name is not UTF-8; the error ends the watch."""

_log = structlog.get_logger()


class WatchfilesThread:
    """`NativeWatch` with a thread, which wakes at every step."""

    def __init__(
        self, path: Path, root: Root, wanted: Callable[[str], bool], step_ms: int | None, signal: WatchSignal
    ) -> None:
        self._path, self._root, self._wanted, self._signal = path, root, wanted, signal
        self._step_ms = STEP_MS if step_ms is None else step_ms
        self._real = ""
        self._stopped = False
        self._signalled_start = False
        self._warned_undecodable = False
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._run, name=f"watch-{path.name}", daemon=True).start()

    @property
    def max_lag(self) -> float:
        return 2 * self._step_ms / 1000

    async def stop(self) -> None:
        """Stop the thread, which ends at its next step, and wait for it."""
        self._stopped = True
        with suppress(TimeoutError):  # the file system hangs; the thread ends with the process
            async with asyncio.timeout(_STOP_SECONDS):
                await self._ended.wait()

    def is_set(self) -> bool:
        """Return whether the watch must end. watchfiles calls this at each step, first when the watch has started."""
        if not self._signalled_start:
            self._signalled_start = True
            self._call(self._signal.report, frozenset())
        try:
            return self._stopped or root_of(self._path) != self._root
        except OSError:
            return True

    def _run(self) -> None:
        reason = "the native watch failed"
        try:
            self._real = os.path.realpath(self._path)
            while self._watch_until_undecodable():
                # The signal at the next start causes a scan, which finds the changes in between.
                self._signalled_start = False
                time.sleep(self._step_ms / 1000)
            reason = ""
        except FileNotFoundError:
            reason = ""
            time.sleep(self._step_ms / 1000)  # the directory was deleted just now; an immediate scan might still see it
        except (OSError, RuntimeError, UnicodeError) as error:  # watchfiles raises RuntimeError
            reason = str(error)
        finally:
            self._call(self._end, reason)

    def _watch_until_undecodable(self) -> bool:
        """Watch. Return True if a file name that is not UTF-8 ended the watch, False if it must end."""
        try:
            for changes in watch(
                self._real,
                watch_filter=self._is_wanted,
                debounce=self._step_ms,
                step=self._step_ms,
                stop_event=self,
                rust_timeout=0,
                raise_interrupt=False,
                force_polling=False,
                recursive=False,
            ):
                self._call(self._signal.report, frozenset(os.path.basename(path) for _, path in changes))  # noqa: PTH119
        except RuntimeError as error:
            if not str(error).startswith(_UNDECODABLE):
                raise
            if not self._warned_undecodable:
                self._warned_undecodable = True
                hint = "rename the file; until then, the native watch restarts at each change and no change is missed"
                _log.warning("file_name_not_unicode", directory=str(self._path), error=str(error), hint=hint)
            return not self._stopped
        return False

    def _is_wanted(self, change: Change, path: str) -> bool:
        if path == self._real and change is Change.deleted:
            self._stopped = True  # `is_set` alone would miss a new directory with the same inode
        folder, name = os.path.split(path)
        return folder == self._real and self._wanted(name)

    def _end(self, reason: str) -> None:
        self._signal.end(reason)
        self._ended.set()

    def _call(self, function: Callable[..., None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: no reader is left
            self._loop.call_soon_threadsafe(function, argument)
