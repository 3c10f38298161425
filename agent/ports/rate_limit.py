"""Uploads within a rate: a bucket of tokens, a token a byte, that all senders share.

A small piece goes when the bucket holds enough for it. A piece larger than the bucket goes when the bucket is full, and
those after it wait until it is paid for. So no stretch of time sees more than the rate allows and the one largest
piece, or the bucket, on top.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass, field, replace

from agent.ports.objects import Progress
from agent.ports.system import Clock

FULL_SECONDS = 0.25
"""So much of the rate fits into the bucket."""

SIGN_SECONDS = 1.0
"""How often a waiting sender reports that it is alive."""


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """How many bytes may go at once (`level`, at the time `at`): `rate` more a second, up to `full`. Below 0: owed."""

    rate: float
    full: float
    level: float
    at: float

    @classmethod
    def of(cls, rate: float, now: float) -> "TokenBucket":
        """Return a full one for so many bytes a second."""
        full = max(rate * FULL_SECONDS, 1.0)
        return cls(rate, full, full, now)

    def wait(self, count: int, now: float) -> float:
        """Return in how many seconds so many bytes may go; 0 where they may go now."""
        missing = min(count, self.full) - self._filled(now)
        # A byte, or a microsecond, too early is paid for by the next; to a clock, waiting for it may be no time at all.
        return missing / self.rate if missing > max(1.0, self.rate * 1e-6) else 0.0

    def taken(self, count: int, now: float) -> "TokenBucket":
        """So many bytes go now."""
        return replace(self, level=self._filled(now) - count, at=now)

    def _filled(self, now: float) -> float:
        return min(self.level + max(now - self.at, 0.0) * self.rate, self.full)


@dataclass(slots=True)
class RateLimiter:
    """Limits all senders together to `bytes_per_second`, above 0; first come, first served."""

    bytes_per_second: float
    clock: Clock

    _bucket: TokenBucket = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _waiting: list[Callable[[], None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._bucket = TokenBucket.of(self.bytes_per_second, self.clock.monotonic())

    @property
    def piece_bytes(self) -> int:
        """The size of pieces that leave evenly."""
        return max(int(self._bucket.full / 2), 1)

    async def take(self, count: int, waiting: Callable[[], None]) -> None:
        """Return when so many bytes may go; `waiting` is called every second until then, also while others go first.

        Cancelled, it has taken nothing.
        """
        self._waiting.append(waiting)
        try:
            async with self._turn:
                while (wait := self._bucket.wait(count, self.clock.monotonic())) > 0:
                    for report in tuple(self._waiting):
                        report()
                    await self.clock.sleep(min(wait, SIGN_SECONDS))
                self._bucket = self._bucket.taken(count, self.clock.monotonic())
        finally:
            self._waiting.remove(waiting)

    async def limited(self, body: AsyncIterable[bytes], progress: Progress) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a body in even pieces, each when it may go; while one waits, that is progress of 0 bytes.

        For a receiver that sends a piece on when it gets it. One that gathers them first would send in bursts.
        """
        size = self.piece_bytes
        async for whole in body:
            for start in range(0, len(whole), size):
                piece = whole[start : start + size]
                await self.take(len(piece), lambda: progress(0))
                yield piece
