"""Progress of a sync: published a few times a second, and watched to find stalled connections."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

import structlog

from agent.application.signal import Signal
from agent.domain.errors import AkoshaError, SyncError
from agent.domain.events import SyncProgress, SyncRequested
from agent.ports import Clock, Connected, Delivered, EventBus, Reporter, SyncMethod, Unchanged, reset_clients

PUBLISH_SECONDS = 0.25

TIGHT_SECONDS = 10.0
"""Longest time without progress after the machine woke up, or the network changed."""

TIGHT_FOR_SECONDS = 30.0
"""How long that goes on: what a dead connection still takes into its buffers looks like a move."""

MOST_RESTARTS = 2
"""How often one attempt starts again after a network change has cut it off."""

_log = structlog.get_logger()


class ProgressReporter:
    """A Reporter whose figures go out as SyncProgress events while it is open, at most four times a second."""

    def __init__(self, bus: EventBus, clock: Clock, request: SyncRequested, method: str) -> None:
        self._bus, self._clock, self._request, self._method = bus, clock, request, method
        self._signal = Signal(clock, "progress")
        self._phase, self._done, self._total, self._published = "", 0, 0, 0

    def phase(self, name: str, total_bytes: int) -> None:
        self._phase, self._done, self._total = name, 0, total_bytes
        self._signal.set()

    def moved(self, count: int) -> None:
        self._done += count
        self._signal.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ProgressReporter"]:
        """Publish progress for as long as the block runs."""
        task = asyncio.create_task(self._publish_loop(), name=f"progress-{self._method}")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _publish_loop(self) -> None:
        while True:
            await self._signal.wait(None)
            self._published += 1
            try:
                await self._bus.publish(self._event())
            except AkoshaError as error:
                _log.debug("progress_not_published", request_id=self._request.request_id, error=str(error))
            await self._clock.sleep(PUBLISH_SECONDS)

    def _event(self) -> SyncProgress:
        now = self._clock.now()
        return SyncProgress(
            id=f"{self._request.request_id}.{self._method}.progress.{now:%Y%m%dT%H%M%S.%f}.{self._published}",
            time=now,
            system_id=self._request.system_id,
            request_id=self._request.request_id,
            method=self._method,
            phase=self._phase,
            done_bytes=self._done,
            total_bytes=self._total,
        )


class StallTimeout(TimeoutError):  # noqa: N818 - it says the state of the world
    """No progress for the shorter limit that holds after a network change."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no progress for {seconds:g} s, and its connection may have been lost before")


class _StallLimit:
    """One limit on standing still: `seconds`, and fewer while it is hurried. `progress_count` is a figure that grows
    where data moves that is not reported; it is checked while the limit is tight.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float, progress_count: Callable[[], int] | None) -> None:
        self._limit, self._seconds, self._progress_count = limit, seconds, progress_count
        self._loop = asyncio.get_running_loop()
        self._tight_until, self._tight_seconds, self._last_count = 0.0, seconds, 0
        self._check: asyncio.TimerHandle | None = None
        self.tight_limit: float | None = None
        """The limit in seconds while it is less than usual."""

    def moved(self) -> None:
        if self._limit.expired():
            return
        now = self._loop.time()
        tight = now < self._tight_until
        self.tight_limit = self._tight_seconds if tight else None
        self._limit.reschedule(now + (self._tight_seconds if tight else self._seconds))

    def tighten(self, seconds: float, *, until: float) -> None:
        """From now until then (the loop's time) no more than so many seconds may pass without a move."""
        end, limit = self._loop.time() + seconds, self._limit.when()
        self._tight_until, self._tight_seconds = until, min(seconds, self._seconds)
        if not self._limit.expired() and (limit is None or limit > end):
            self.tight_limit = self._tight_seconds
            self._limit.reschedule(end)
        if self._progress_count is not None:
            self._last_count = self._progress_count()
            self._schedule_check()

    def close(self) -> None:
        if self._check is not None:
            self._check.cancel()

    def _schedule_check(self) -> None:
        self.close()
        self._check = self._loop.call_later(self._tight_seconds / 4, self._check_progress)

    def _check_progress(self) -> None:
        if self._progress_count is None:
            return
        before, self._last_count = self._last_count, self._progress_count()
        if self._last_count != before:
            self.moved()
        if self.tight_limit is not None:
            self._schedule_check()


class StallMonitor:
    """Knows the open limits on time without progress, and the components that keep connections.

    For `tight_for_seconds` after `tighten`, what was under way then may make no progress for `tight_seconds` at most.
    What begins later has connections of its own, and all the time it is given.
    """

    def __init__(self, *, tight_seconds: float = TIGHT_SECONDS, tight_for_seconds: float = TIGHT_FOR_SECONDS) -> None:
        self._tight_seconds, self._tight_for_seconds = tight_seconds, tight_for_seconds
        self._limits: set[_StallLimit] = set()
        self._connected: list[Connected] = []

    def register(self, connected: Connected) -> None:
        """Add a component whose idle connections `tighten` drops."""
        self._connected.append(connected)

    async def tighten(self) -> None:
        """Every connection may be dead: drop idle ones, and shorten the limits of those in use."""
        until = asyncio.get_running_loop().time() + self._tight_for_seconds
        for stall_limit in self._limits:
            stall_limit.tighten(self._tight_seconds, until=until)
        for connected in self._connected:
            await connected.drop_idle_connections()

    async def reset_clients(self) -> None:
        """Have each component that keeps a client build a new one at its next call."""
        await reset_clients(*self._connected)

    def moved(self) -> None:
        """Restart all limits: what is under way waits on purpose."""
        for stall_limit in self._limits:
            stall_limit.moved()

    @contextmanager
    def watching(self, stall_limit: _StallLimit) -> Iterator[None]:
        self._limits.add(stall_limit)
        try:
            yield
        finally:
            self._limits.discard(stall_limit)
            stall_limit.close()


@asynccontextmanager
async def limit_stalls(
    seconds: float, stall_monitor: StallMonitor | None = None, progress_count: Callable[[], int] | None = None
) -> AsyncIterator[Callable[[], None]]:
    """Raise TimeoutError out of the block when the callable it yields has not been called for so many seconds.

    A limit on time without progress, not on time: a file of any size may take as long as it moves. After `tighten` of
    the `stall_monitor` it is shorter, and raises StallTimeout; then `progress_count`, a figure that grows as something
    moves, counts as well.
    """
    stall_limit: _StallLimit | None = None
    try:
        async with asyncio.timeout(seconds) as limit:
            stall_limit = _StallLimit(limit, seconds, progress_count)
            with stall_monitor.watching(stall_limit) if stall_monitor is not None else nullcontext():
                yield stall_limit.moved
    except TimeoutError as error:
        if stall_limit is None or stall_limit.tight_limit is None or not limit.expired():
            raise
        raise StallTimeout(stall_limit.tight_limit) from error


@asynccontextmanager
async def stall_timeout(
    seconds: float,
    location: str,
    failure: type[SyncError],
    method: str,
    *,
    stall_monitor: StallMonitor | None = None,
    progress_count: Callable[[], int] | None = None,
) -> AsyncIterator[Callable[[], None]]:
    """Limit the time without progress as `limit_stalls` does; raise a `failure` that names the setting.

    After a network change the failure's `original` is StallTimeout.
    """
    try:
        async with limit_stalls(seconds, stall_monitor, progress_count) as moved:
            yield moved
    except StallTimeout as error:
        raise failure(f"{location}: {error}", method, error, transient=True) from error
    except TimeoutError as error:
        raise failure(
            f"{location}: no progress for {seconds:g} s",
            method,
            error,
            transient=True,
            hint="akosha_upload_timeout_seconds sets the limit",
        ) from error


async def sync_with_restarts(method: SyncMethod, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
    """Sync by a method; start again at once where a network change has interrupted it and the target can be reached.

    Raises SyncError. A restart is not an attempt of its own.
    """
    for restarts in range(MOST_RESTARTS + 1):
        try:
            return await method.sync(request, report)
        except SyncError as error:
            interrupted = isinstance(error.original, StallTimeout) and restarts < MOST_RESTARTS
            if not interrupted or not await method.is_available():
                raise
            _log.info("sync_restarted", request_id=request.request_id, method=method.name, reason=error.message)
    raise AssertionError
