"""Turns: how much of one upload is ingested before the next system has its turn.

Uploads are not trusted: a few kilobytes may decompress to millions of rows. An upload that has used up its share pauses
until the other waiting uploads have had their turn, then continues. Its files and its reader stay open meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.ports import Clock

AT_ONCE = 4
"""Number of uploads that are ingested in parallel."""

OPEN_AT_ONCE = 16
"""Maximum number of open uploads, including those that wait for their next turn. Each has files and a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The limits of a turn. It ends at the first page of rows after one is reached. `raw_bytes` are uncompressed."""

    rows: int = 20_000
    raw_bytes: int = 256 * 2**20
    seconds: float = 10.0


class Turns:
    """Gives turns to uploads in the order of their requests, including the further turns of large uploads."""

    def __init__(
        self, clock: Clock, *, share: Share | None = None, at_once: int = AT_ONCE, open_at_once: int = OPEN_AT_ONCE
    ) -> None:
        self._clock, self.share = clock, share or Share()
        self._free, self._open = asyncio.Semaphore(at_once), asyncio.Semaphore(open_at_once)

    @asynccontextmanager
    async def one(self) -> AsyncIterator["Turn"]:
        """Wait for a turn, and hold it while the block runs, except during `Turn.pause`."""
        # An open upload only ever waits for a turn, so there is no deadlock.
        async with self._open:
            turn = Turn(self._free, self._clock, self.share)
            await turn.begin()
            try:
                yield turn
            finally:
                turn.end()


class Turn:
    """The turn of one upload. Not for concurrent use."""

    def __init__(self, free: asyncio.Semaphore, clock: Clock, share: Share) -> None:
        self._free, self._clock, self._share = free, clock, share
        self._held = False
        self._rows = self._raw_bytes = 0
        self._since = 0.0

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._free.acquire()
        self._held = True
        self._rows = self._raw_bytes = 0
        self._since = self._clock.monotonic()

    def end(self) -> None:
        """Give the turn to the next upload."""
        if self._held:
            self._held = False
            self._free.release()

    def spend(self, *, rows: int = 0, raw_bytes: int = 0) -> None:
        """Count rows and bytes towards the share."""
        self._rows += rows
        self._raw_bytes += raw_bytes

    @property
    def used_up(self) -> bool:
        share = self._share
        return (
            self._rows >= share.rows
            or self._raw_bytes >= share.raw_bytes
            or self._clock.monotonic() - self._since >= share.seconds
        )

    async def pause(self, record_progress: Callable[[], None], every_seconds: float) -> None:
        """If the share is used up, wait for the next turn; call `record_progress` meanwhile."""
        if not self.used_up:
            return
        self.end()
        waiting = asyncio.create_task(self.begin(), name="next-turn")
        try:
            while not (await asyncio.wait({waiting}, timeout=every_seconds))[0]:
                record_progress()
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
        record_progress()
