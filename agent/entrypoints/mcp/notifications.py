"""Progress, told to the client while a call runs, by a task of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from agent.domain.errors import AlreadyRunning, StateError
from agent.domain.events import SyncProgress
from agent.entrypoints.mcp.progress import ProgressCounter, Step

BEAT_SECONDS = 5.0

_log = structlog.get_logger()

Tell = Callable[[float, float | None, str], Awaitable[None]]
"""Sends one notification: done, total, message."""


class ProgressNotifications:
    """Tells of one call: what moves as it moves, and every few seconds that it is still at work, and why.

    A client that does not listen misses steps: the newest alone waits for it.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._course = ProgressCounter()
        self._news: SyncProgress | None = None
        self._doing = "at work"
        self._rung = asyncio.Event()
        self._waits = ""

    def hear(self, event: SyncProgress) -> None:
        """A sync here has moved."""
        self._news = event
        self._rung.set()

    def waits(self, holder: AlreadyRunning) -> None:
        """Another process is asked, or waited for."""
        who = f"process {holder.pid} ({holder.command})" if holder.pid else "another process"
        who = "another call" if holder.pid == os.getpid() else who
        if who != self._waits:
            self._waits = who
            self._doing = f"{who} is at work: waiting for its result"
            self._rung.set()

    @asynccontextmanager
    async def open(self, trouble: Callable[[], Awaitable[str]]) -> AsyncIterator[None]:
        """Tell for as long as the block runs. `trouble` is asked now and then what keeps the sync waiting."""
        task = asyncio.create_task(self._run(trouble), name="tell-progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()):
                _log.warning("progress_untold", exc_info=error)

    async def begin(self, message: str) -> None:
        await self._send(self._course.begun(message))

    async def end(self, message: str) -> None:
        await self._send(self._course.ended(message))

    async def _run(self, trouble: Callable[[], Awaitable[str]]) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._rung.wait()
            except TimeoutError:
                message = await self._why(trouble) or self._doing
                await self._send(self._course.stood(f"{message} ({loop.time() - since:.0f} s)"))
                continue
            self._rung.clear()
            news, self._news = self._news, None
            await self._send(self._course.moved(news) if news else self._course.stood(self._doing))

    async def _why(self, trouble: Callable[[], Awaitable[str]]) -> str:
        try:
            return await trouble()
        except StateError as error:
            _log.debug("progress_unknown", error=str(error))
            return ""

    async def _send(self, step: Step) -> None:
        await self._tell(step.done, step.total, step.message)
