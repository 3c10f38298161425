"""Turns: what one upload may take of the Akosha side's time before the next system has its turn.

Uploads were written by others: a few kilobytes may unpack to millions of rows. So an upload that has used up its share
waits, where it is, until the others that wait have had their turn, and then goes on: its files and its reader are kept.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.ports import Clock

AT_ONCE = 4
"""How many uploads are worked on at a time."""

BEGUN_AT_ONCE = 16
"""How many uploads may be begun, those that wait for their next turn among them: each has its files, and a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A turn ends, at the next page of rows, with the first of these that is used up. `raw_bytes`: unpacked."""

    rows: int = 20_000
    raw_bytes: int = 256 * 2**20
    seconds: float = 10.0


class Turns:
    """Uploads in turn, first come first served; so is each next turn of one that was not done in its share."""

    def __init__(
        self, clock: Clock, *, share: Share | None = None, at_once: int = AT_ONCE, begun_at_once: int = BEGUN_AT_ONCE
    ) -> None:
        self._clock, self.share = clock, share or Share()
        self._free, self._begun = asyncio.Semaphore(at_once), asyncio.Semaphore(begun_at_once)

    @asynccontextmanager
    async def one(self) -> AsyncIterator["Turn"]:
        """Have a turn for as long as the block runs, in as many parts as it takes."""
        # Who has begun waits for a turn alone, so that nobody waits in a circle.
        async with self._begun:
            turn = Turn(self._free, self._clock, self.share)
            await turn.begin()
            try:
                yield turn
            finally:
                turn.end()


class Turn:
    """One upload's turn. For one task at a time."""

    def __init__(self, free: asyncio.Semaphore, clock: Clock, share: Share) -> None:
        self._free, self._clock, self._share = free, clock, share
        self._held = False
        self._rows = self._raw_bytes = 0
        self._since = 0.0

    async def begin(self) -> None:
        """Wait for it."""
        await self._free.acquire()
        self._held = True
        self._rows = self._raw_bytes = 0
        self._since = self._clock.monotonic()

    def end(self) -> None:
        """Let the next one have it."""
        if self._held:
            self._held = False
            self._free.release()

    def spend(self, *, rows: int = 0, raw_bytes: int = 0) -> None:
        """Count what was done."""
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

    async def pause(self, moved: Callable[[], None], every_seconds: float) -> None:
        """Where the share is used up, let the others go first; `moved` is called meanwhile (no standstill)."""
        if not self.used_up:
            return
        self.end()
        waiting = asyncio.create_task(self.begin(), name="next-turn")
        try:
            while not (await asyncio.wait({waiting}, timeout=every_seconds))[0]:
                moved()
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
        moved()
