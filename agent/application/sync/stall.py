"""Progress of a sync: published a few times a second, and monitored to detect stalled connections."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

import structlog

from agent.application.signal import Signal
from agent.domain.errors import AkoshaError, SyncError
from agent.domain.events import SyncProgress, SyncRequested
from agent.domain.progress import Activity, Progress
from agent.ports import Clock, Connected, Delivered, Reporter, SyncMethod, Unchanged, VolatileBus, reset_clients

PUBLISH_SECONDS = 0.25
"""Interval between two progress events."""

TIGHT_SECONDS = 10.0
"""Longest time without progress after the machine woke up or the network changed."""

TIGHT_FOR_SECONDS = 30.0
"""How long the tight limit lasts: bytes that go into a dead connection's buffers still look like progress."""

MOST_RESTARTS = 2
"""How often one attempt restarts after a network change has interrupted it."""

_log = structlog.get_logger()


class ProgressReporter:
    """A Reporter that publishes SyncProgress events while it is open, at most four a second."""

    def __init__(self, bus: VolatileBus, clock: Clock, request: SyncRequested, method: str) -> None:
        self._bus, self._clock, self._request, self._method = bus, clock, request, method
        self._signal = Signal(clock, "progress")
        self._progress, self._published = Progress("", None, at=clock.monotonic()), 0

    def phase(self, name: str, total_bytes: int) -> None:
        self._progress = Progress(name, total_bytes, at=self._clock.monotonic())
        self._signal.set()

    def moved(self, count: int) -> None:
        self._advance(count, kept=0)

    def kept(self, count: int) -> None:
        self._advance(count, kept=count)

    def _advance(self, count: int, *, kept: int) -> None:
        progress = self._progress
        progress.update(progress.done + count, at=self._clock.monotonic(), kept=progress.kept + kept)
        self._signal.set()

    def activity(self) -> Activity:
        """Return the progress as of now."""
        now, progress = self._clock.monotonic(), self._progress
        return Activity(
            request_id=self._request.request_id,
            method=self._method,
            phase=progress.phase,
            done_bytes=progress.done,
            total_bytes=progress.total or 0,
            bytes_per_second=progress.rate(at=now),
            remaining_seconds=progress.remaining_seconds(at=now),
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ProgressReporter"]:
        """Publish progress until the block ends."""
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
            phase=self._progress.phase,
            done_bytes=self._progress.done,
            total_bytes=self._progress.total or 0,
            kept_bytes=self._progress.kept,
        )


class StallTimeout(TimeoutError):  # noqa: N818 - named for the condition
    """There was no progress within the shorter limit that applies after a network change."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no progress for {seconds:g} s; a network change may have broken the connection")


class _StallLimit:
    """A limit on the time without progress: `seconds`, or less while it is tight.

    `progress_count` returns a number that grows with data whose progress is not reported. It is polled while the limit
    is tight.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float, progress_count: Callable[[], int] | None) -> None:
        self._limit, self._seconds, self._progress_count = limit, seconds, progress_count
        self._loop = asyncio.get_running_loop()
        self._tight_until, self._tight_seconds, self._last_count = 0.0, seconds, 0
        self._check: asyncio.TimerHandle | None = None
        self.tight_limit: float | None = None
        """The limit in seconds while it is tight."""

    def record_progress(self) -> None:
        """Start the limit over."""
        if self._limit.expired():
            return
        now = self._loop.time()
        tight = now < self._tight_until
        self.tight_limit = self._tight_seconds if tight else None
        self._limit.reschedule(now + (self._tight_seconds if tight else self._seconds))

    def tighten(self, seconds: float, *, until: float) -> None:
        """Allow at most `seconds` without progress, from now until `until` (in the event loop's time)."""
        deadline, limit = self._loop.time() + seconds, self._limit.when()
        self._tight_until, self._tight_seconds = until, min(seconds, self._seconds)
        if not self._limit.expired() and (limit is None or limit > deadline):
            self.tight_limit = self._tight_seconds
            self._limit.reschedule(deadline)
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
            self.record_progress()
        if self.tight_limit is not None:
            self._schedule_check()


class StallMonitor:
    """Keeps the active stall limits, and the components that keep connections open.

    For `tight_for_seconds` after `tighten`, operations that were in progress fail after `tight_seconds` without
    progress. Operations that start later open new connections, and keep their normal limit.
    """

    def __init__(self, *, tight_seconds: float = TIGHT_SECONDS, tight_for_seconds: float = TIGHT_FOR_SECONDS) -> None:
        self._tight_seconds, self._tight_for_seconds = tight_seconds, tight_for_seconds
        self._limits: set[_StallLimit] = set()
        self._connected: list[Connected] = []

    def register(self, connected: Connected) -> None:
        """Add a component whose idle connections `tighten` drops."""
        self._connected.append(connected)

    async def tighten(self) -> None:
        """Drop idle connections, and tighten the limits of operations in progress: every connection may be dead."""
        until = asyncio.get_running_loop().time() + self._tight_for_seconds
        for stall_limit in self._limits:
            stall_limit.tighten(self._tight_seconds, until=until)
        for connected in self._connected:
            await connected.drop_idle_connections()

    async def reset_clients(self) -> None:
        """Make each component that keeps a client build a new one at its next call."""
        await reset_clients(*self._connected)

    def restart_limits(self) -> None:
        """Start all limits over: the operations in progress wait on purpose, for the rate limit."""
        for stall_limit in self._limits:
            stall_limit.record_progress()

    @contextmanager
    def watching(self, stall_limit: _StallLimit) -> Iterator[None]:
        """Include a limit in `tighten` and `restart_limits` until the block ends."""
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
    """Raise TimeoutError in the block if the yielded callable is not called for `seconds`.

    The limit is on the time without progress, not on the total time. After `StallMonitor.tighten` the limit is shorter
    and raises StallTimeout; meanwhile growth of `progress_count()` counts as progress too.
    """
    stall_limit: _StallLimit | None = None
    try:
        async with asyncio.timeout(seconds) as limit:
            stall_limit = _StallLimit(limit, seconds, progress_count)
            with stall_monitor.watching(stall_limit) if stall_monitor is not None else nullcontext():
                yield stall_limit.record_progress
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
    """Limit the time without progress as `limit_stalls` does, but raise a `failure` that names the setting.

    After a network change the failure's `original` is StallTimeout.
    """
    try:
        async with limit_stalls(seconds, stall_monitor, progress_count) as progress:
            yield progress
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
    """Sync by a method; restart at once if a network change has interrupted it and the target can be reached.

    A restart does not count as an attempt. Raises SyncError.
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
