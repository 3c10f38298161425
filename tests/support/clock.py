"""A clock that a test advances: `agent.ports.Clock`."""

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)

_TURNS = 200
"""Maximum iterations of the event loop between two times, if a task never waits."""


async def until_idle() -> None:
    """Run all tasks until each waits. Does not wait for threads."""
    loop = asyncio.get_running_loop()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if not loop._ready:
            return


class ManualClock:
    """`advance` moves both times; `jump` moves only the wall time, in either direction, and wakes no sleeper."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed = 0.0
        self._offset = timedelta()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        return self._start + self._offset + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wakeup = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), wakeup))
        self._changed.set()
        await wakeup

    @property
    def sleepers(self) -> int:
        """The number of sleeping tasks."""
        return sum(not wakeup.done() for _, _, wakeup in self._sleepers)

    @property
    def next_due(self) -> float | None:
        """Seconds until the first sleeper wakes, or None."""
        due = [at for at, _, wakeup in self._sleepers if not wakeup.done()]
        return min(due) - self._elapsed if due else None

    async def until_asleep(self, count: int = 1) -> None:
        """Wait until `count` tasks sleep; fails after 60 real seconds."""
        async with asyncio.timeout(60):
            while self.sleepers < count:
                self._changed.clear()
                await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Advance the time. Sleepers wake in order, each at its due time, as often as they sleep within it."""
        end = self._elapsed + seconds
        await until_idle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, wakeup = heapq.heappop(self._sleepers)
            if wakeup.done():
                continue
            self._elapsed = max(self._elapsed, at)
            wakeup.set_result(None)
            await until_idle()
        self._elapsed = end
        await until_idle()

    def jump(self, by: timedelta) -> None:
        """Set the wall clock forward or back; the monotonic time is unchanged."""
        self._offset += by
