"""A clock that stands still until a test moves it. Keeps the promises of `agent.ports.Clock`."""

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)

_TURNS = 200
"""Most turns of the event loop that woken tasks get before time goes on, where some task never comes to rest."""


async def until_idle() -> None:
    """Let all tasks run until each waits for something. Threads are not waited for."""
    loop = asyncio.get_running_loop()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        if not loop._ready:
            return


class ManualClock:
    """`advance` moves both times; `jump` moves the wall time alone, either way, and wakes nobody."""

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
        bell = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), bell))
        self._changed.set()
        await bell

    @property
    def sleepers(self) -> int:
        """How many are asleep now."""
        return sum(not bell.done() for _, _, bell in self._sleepers)

    @property
    def next_due(self) -> float | None:
        """In how many seconds the first sleeper wakes, or None."""
        due = [at for at, _, bell in self._sleepers if not bell.done()]
        return min(due) - self._elapsed if due else None

    async def until_asleep(self, count: int = 1) -> None:
        """Return once so many are asleep (bounded by 10 real seconds)."""
        async with asyncio.timeout(60):
            while self.sleepers < count:
                self._changed.clear()
                await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass. Sleepers wake in order, each at its own time, and again where they sleep again."""
        end = self._elapsed + seconds
        await until_idle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, bell = heapq.heappop(self._sleepers)
            if bell.done():
                continue
            self._elapsed = max(self._elapsed, at)
            bell.set_result(None)
            await until_idle()
        self._elapsed = end
        await until_idle()

    def jump(self, by: timedelta) -> None:
        """Set the wall clock forward or back; the monotonic time goes on as if nothing had happened."""
        self._offset += by
