"""Reports changes of files in one directory: by native notifications if they work, otherwise by polling.

Three mechanisms are combined, because each one alone misses changes:

    native   inotify, elsewhere a thread in watchfiles (FSEvents): silent on network file systems
    scan     a stat of all watched files, compared with the last one: at every rescan, or every 2 s if native fails
    root     the native watch ends if the path is another directory than before: it would follow a directory that was
             deleted or renamed, and never report anything again. What it cannot see, the rescan finds (a mount above
             the directory; on Linux also a deleted directory that a process has open)

If the native watch ends, the next one begins with a scan, so no change is missed.
All times are monotonic, except for the age of a reported change: a jump of the wall clock changes that by no more than
the time that reporting may take.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from agent.adapters.watcher.native import NativeWatch, WatchSignal
from agent.adapters.watcher.scan import DirectoryState, file_system, read_directory, silent
from agent.ports import Clock

_POLL_SECONDS = 2.0
_MISSING_SECONDS = 1.0
_LIMITS = "on Linux: raise fs.inotify.max_user_watches and max_user_instances, or the limit of open files"

_log = structlog.get_logger()


def native_watch() -> type[NativeWatch]:
    """Return the native watch of this system. Only its module is imported."""
    if os.uname().sysname == "Linux":
        from agent.adapters.watcher.inotify import Inotify  # noqa: PLC0415

        return Inotify
    from agent.adapters.watcher.watchfiles_thread import WatchfilesThread  # noqa: PLC0415

    return WatchfilesThread


class DirectoryWatcher:
    """`agent.ports.Watch` on `directory`, which may be missing, for names that are `wanted`. One reader at a time.

    Changes are reported since the first scan, with which the first reader starts, or since the last report: at once
    (at most one report per `step_ms`) with inotify, within two steps with watchfiles, or by the scan every
    `rescan_seconds`. `step_ms` None: the default of `native`. `native` None: the native watch of this system.
    `force_polling` None: poll if the file system requires it. If the native watch fails, the directory is polled, and
    the native watch is tried again after `rescan_seconds`. `wanted` is called from several threads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        wanted: Callable[[str], bool],
        rescan_seconds: float,
        clock: Clock,
        step_ms: int | None = None,
        force_polling: bool | None = None,
        native: type[NativeWatch] | None = None,
    ) -> None:
        self._directory, self._wanted, self._clock = directory, wanted, clock
        self._rescan, self._step_ms, self._force, self._native = rescan_seconds, step_ms, force_polling, native
        self._failure, self._native_from = "", clock.monotonic()
        self._mode = "starting"
        self._lag = self._max_lag = 0.0
        self._first = True
        self._seen = DirectoryState(None)
        self._looked = clock.monotonic()

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def lag(self) -> float:
        return self._lag

    @property
    def scanned_at(self) -> float:
        return self._looked

    async def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Implement the port. A set names files that changed, appeared or disappeared."""
        reported_mode = self._mode
        if self._first:
            self._seen = await self._read_directory()
            self._first = False
            yield frozenset()
        while True:
            async with self._listening() as signal:
                while signal.failed is None and self._clock.monotonic() < signal.until:
                    await signal.event.wait()
                    signal.event.clear()
                    reported_names, signal.names = signal.names, frozenset()
                    before, self._seen = self._seen, await self._read_directory()
                    if signal.listening and signal.failed is None:
                        self._set_mode("native")
                    names = reported_names | self._seen.differing(before)
                    if names or self._mode != reported_mode:
                        reported_mode, self._lag = self._mode, self._age(names)
                        yield names
                    if self._seen.root != before.root:
                        break
            if signal.failed:
                self._failure, self._native_from = signal.failed, self._clock.monotonic() + self._rescan

    async def _read_directory(self) -> DirectoryState:
        """Scan the directory in a thread: a mount that hangs must block this reader only."""
        seen = await asyncio.to_thread(read_directory, self._directory, self._wanted)
        self._looked = self._clock.monotonic()
        return seen

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[WatchSignal]:
        """Listen natively or by polling, as the directory allows now."""
        signal, period = WatchSignal(), min(_POLL_SECONDS, self._rescan)
        native: NativeWatch | None = None
        if self._seen.root is None:
            self._set_mode(f"waiting for {self._directory}" + (f" ({self._seen.reason})" if self._seen.reason else ""))
            period = _MISSING_SECONDS
        elif reason := await self._poll_reason():
            self._set_mode(f"polling ({reason})")
        elif self._clock.monotonic() < self._native_from:
            self._set_mode(f"polling ({self._failure})", hint=_LIMITS)
            signal.until = self._native_from
        else:
            native = (self._native or native_watch())(
                self._directory, self._seen.root, self._wanted, self._step_ms, signal
            )
            period = self._rescan
        self._max_lag = period if native is None else native.max_lag
        ticker = asyncio.create_task(self._tick(signal, period), name=f"watch-{self._directory.name}-rescan")
        try:
            yield signal
        finally:
            ticker.cancel()
            await asyncio.wait({ticker})
            if native is not None:
                await native.stop()

    def _age(self, names: frozenset[str]) -> float:
        """Return the seconds since the newest of these files was written; 0 if it is gone or from the future."""
        written = [self._seen.files[name][2] for name in names if name in self._seen.files]
        if not written:
            return 0.0
        age = self._clock.now().timestamp() - max(written) / 1e9
        return min(max(age, 0.0), self._max_lag)

    async def _tick(self, signal: WatchSignal, period: float) -> None:
        while True:
            await self._clock.sleep(period)
            signal.event.set()

    async def _poll_reason(self) -> str:
        """Return why this directory must be polled, "" if it does not have to be."""
        if self._force is not None:
            return "as set" if self._force else ""
        kind = await asyncio.to_thread(file_system, self._directory)
        return f"{kind} does not report changes" if silent(kind) else ""

    def _set_mode(self, mode: str, hint: str = "") -> None:
        if mode != self._mode:
            self._mode = mode
            log = _log.warning if hint else _log.info
            log("watch_mode", directory=str(self._directory), mode=mode, **({"hint": hint} if hint else {}))
