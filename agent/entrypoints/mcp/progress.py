"""Progress notifications of a call. MCP requires `progress` to increase with each one."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from agent.domain.errors import AlreadyRunning, StateError
from agent.domain.events import SyncProgress
from agent.entrypoints.formatting import human_bytes

INTERVAL_SECONDS = 5.0
"""Interval of notifications without progress."""

ReportProgress = Callable[[float, float | None, str], Awaitable[None]]
"""Sends one notification: done, total, message."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """A notification: `done` of `total` bytes (None: unknown), and a message. A step without progress adds one byte."""

    done: float
    total: float | None
    message: str


class ProgressCounter:
    """Creates the steps of one call. Each phase of a sync continues at the count where the previous one ended."""

    def __init__(self) -> None:
        self._last = 0.0
        self._total: float | None = None
        self._phase_start = 0.0
        self._phase = ("", "", 0)
        self._phase_done = 0

    def begin(self, message: str) -> Step:
        return Step(self._last, self._total, message)

    def advance(self, event: SyncProgress) -> Step:
        """Return the step for a sync's progress."""
        phase = (event.method, event.phase, event.total_bytes)
        if phase != self._phase or event.done_bytes < self._phase_done:
            self._phase, self._phase_start = phase, self._last
            self._total = self._phase_start + event.total_bytes if event.total_bytes else None
        self._phase_done = event.done_bytes
        total = f" of {human_bytes(event.total_bytes)}" if event.total_bytes else ""
        message = f"{event.method}: {event.phase}, {human_bytes(event.done_bytes)}{total}"
        return self._step(self._phase_start + event.done_bytes, message)

    def wait(self, message: str) -> Step:
        """Return a step for an interval without progress."""
        return self._step(self._last, message)

    def finish(self, message: str) -> Step:
        """Return the last step, at which `done` equals `total`."""
        self._last = self._total if self._total is not None and self._total > self._last else self._last + 1
        return Step(self._last, self._last, message)

    def _step(self, done: float, message: str) -> Step:
        if done <= self._last:  # add half of the rest, at most one byte: it never reaches the total
            rest = self._total - self._last if self._total is not None else 2.0
            done = self._last + min(1.0, rest / 2)
        if done <= self._last or (self._total is not None and done > self._total):
            self._total = None
            done = max(done, self._last + 1)
        self._last = done
        return Step(done, self._total, message)


class ProgressReporter:
    """Reports the progress of one call: immediately, and every few seconds without progress, with the reason.

    The newest progress replaces progress that a slow client has not received yet.
    """

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._counter = ProgressCounter()
        self._newest: SyncProgress | None = None
        self._state = "syncing"
        self._changed = asyncio.Event()
        self._holder = ""

    def on_progress(self, event: SyncProgress) -> None:
        self._newest = event
        self._changed.set()

    def on_wait(self, holder: AlreadyRunning) -> None:
        """Another process holds the state directory: it does the sync, or must end first."""
        name = f"process {holder.pid} ({holder.command})" if holder.pid else "another process"
        name = "another call" if holder.pid == os.getpid() else name
        if name != self._holder:
            self._holder = name
            self._state = f"waiting for {name}, which holds the state directory"
            self._changed.set()

    @asynccontextmanager
    async def running(self, find_obstacle: Callable[[], Awaitable[str]]) -> AsyncIterator[None]:
        """Report while the block runs. `find_obstacle` returns what the sync waits for, or ""."""
        task = asyncio.create_task(self._run(find_obstacle), name="report-progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()):
                _log.warning("progress_not_sent", exc_info=error)

    async def begin(self, message: str) -> None:
        await self._send(self._counter.begin(message))

    async def finish(self, message: str) -> None:
        await self._send(self._counter.finish(message))

    async def _run(self, find_obstacle: Callable[[], Awaitable[str]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            try:
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                message = await self._obstacle(find_obstacle) or self._state
                await self._send(self._counter.wait(f"{message} ({loop.time() - start:.0f} s)"))
                continue
            self._changed.clear()
            newest, self._newest = self._newest, None
            await self._send(self._counter.advance(newest) if newest else self._counter.wait(self._state))

    async def _obstacle(self, find_obstacle: Callable[[], Awaitable[str]]) -> str:
        try:
            return await find_obstacle()
        except StateError as error:
            _log.debug("progress_unknown", error=str(error))
            return ""

    async def _send(self, step: Step) -> None:
        await self._report(step.done, step.total, step.message)
