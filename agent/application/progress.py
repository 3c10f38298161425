"""How far a sync is: told on the bus a few times a second, and what tells a slow upload from a dead one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from agent.application.wake import Wake
from agent.domain.errors import AkoshaError, SyncError
from agent.domain.events import SyncProgress, SyncRequested
from agent.ports import Clock, EventBus

TELL_SECONDS = 0.25

_log = structlog.get_logger()


class ProgressTeller:
    """A Reporter whose figures go out as SyncProgress events while it is open, at most four times a second."""

    def __init__(self, bus: EventBus, clock: Clock, request: SyncRequested, method: str) -> None:
        self._bus, self._clock, self._request, self._method = bus, clock, request, method
        self._wake = Wake(clock, "progress")
        self._phase, self._done, self._total, self._told = "", 0, 0, 0

    def phase(self, name: str, total_bytes: int) -> None:
        self._phase, self._done, self._total = name, 0, total_bytes
        self._wake.ring()

    def moved(self, count: int) -> None:
        self._done += count
        self._wake.ring()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ProgressTeller"]:
        """Tell for as long as the block runs; ends the telling with it."""
        task = asyncio.create_task(self._tell(), name=f"progress-{self._method}")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _tell(self) -> None:
        while True:
            await self._wake.wait(None)
            self._told += 1
            try:
                await self._bus.publish(self._event())
            except AkoshaError as error:
                _log.debug("progress_untold", request_id=self._request.request_id, error=str(error))
            await self._clock.sleep(TELL_SECONDS)

    def _event(self) -> SyncProgress:
        now = self._clock.now()
        return SyncProgress(
            id=f"{self._request.request_id}.{self._method}.progress.{now:%Y%m%dT%H%M%S.%f}.{self._told}",
            time=now,
            system_id=self._request.system_id,
            request_id=self._request.request_id,
            method=self._method,
            phase=self._phase,
            done_bytes=self._done,
            total_bytes=self._total,
        )


@asynccontextmanager
async def limit_standstill(seconds: float) -> AsyncIterator[Callable[[], None]]:
    """Raise TimeoutError out of the block when the callable it yields has not been called for so many seconds.

    A limit on time without progress, not on time: a file of any size may take as long as it moves.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds) as limit:

        def moved() -> None:
            if not limit.expired():
                limit.reschedule(loop.time() + seconds)

        yield moved


@asynccontextmanager
async def keep_moving(
    seconds: float, place: str, failure: type[SyncError], method: str
) -> AsyncIterator[Callable[[], None]]:
    """Limit the time without progress as `limit_standstill` does; raise a `failure` that names the setting."""
    try:
        async with limit_standstill(seconds) as moved:
            yield moved
    except TimeoutError as error:
        raise failure(
            f"{place}: nothing moved for {seconds:g} s",
            method,
            error,
            transient=True,
            hint="akosha_upload_timeout_seconds sets the limit",
        ) from error
