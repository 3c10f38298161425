"""Limits the rate of uploads with a token bucket, one token per byte, that all senders share.

A piece is sent when the bucket has enough tokens for it. A piece larger than the bucket is sent when the bucket is
full, and later pieces wait until the deficit is refilled. So in any period at most the rate times its length is sent,
plus the size of the bucket or of the largest piece.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass, field, replace

from agent.ports.objects import Progress
from agent.ports.system import Clock

FULL_SECONDS = 0.25
"""Size of the bucket, in seconds of the rate."""

REPORT_SECONDS = 1.0
"""How often `take` calls `waiting`."""


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket with `level` tokens (negative: a deficit) at time `at`, refilled at `rate` per second up to `full`."""

    rate: float
    full: float
    level: float
    at: float

    @classmethod
    def of(cls, rate: float, now: float) -> "TokenBucket":
        """Return a full bucket for a rate in bytes per second."""
        full = max(rate * FULL_SECONDS, 1.0)
        return cls(rate, full, full, now)

    def wait(self, count: int, now: float) -> float:
        """Return in how many seconds `count` bytes may be sent, 0 for now."""
        missing = min(count, self.full) - self._filled(now)
        # A byte or a microsecond too early is made up for by the next piece; a clock may be unable to wait so briefly.
        return missing / self.rate if missing > max(1.0, self.rate * 1e-6) else 0.0

    def taken(self, count: int, now: float) -> "TokenBucket":
        """Return the bucket after `count` bytes are sent now."""
        return replace(self, level=self._filled(now) - count, at=now)

    def _filled(self, now: float) -> float:
        return min(self.level + max(now - self.at, 0.0) * self.rate, self.full)


@dataclass(slots=True)
class RateLimiter:
    """Limits the total of all senders to `bytes_per_second`, above 0; first come, first served."""

    bytes_per_second: float
    clock: Clock

    _bucket: TokenBucket = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _waiting: list[Callable[[], None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._bucket = TokenBucket.of(self.bytes_per_second, self.clock.monotonic())

    @property
    def piece_bytes(self) -> int:
        """The size of pieces with which data is sent evenly."""
        return max(int(self._bucket.full / 2), 1)

    async def take(self, count: int, waiting: Callable[[], None]) -> None:
        """Wait until `count` bytes may be sent. `waiting` is called every second, also while other senders are served.

        If cancelled, it takes no tokens.
        """
        self._waiting.append(waiting)
        try:
            async with self._turn:
                while (wait := self._bucket.wait(count, self.clock.monotonic())) > 0:
                    for report in tuple(self._waiting):
                        report()
                    await self.clock.sleep(min(wait, REPORT_SECONDS))
                self._bucket = self._bucket.taken(count, self.clock.monotonic())
        finally:
            self._waiting.remove(waiting)

    async def limited(self, body: AsyncIterable[bytes], progress: Progress) -> AsyncGenerator[bytes, None]:
        """Yield a body in even pieces, each when it may be sent. While a piece waits, 0 bytes of progress are reported.

        The receiver must send each piece at once; if it collected pieces, it would send in bursts.
        """
        size = self.piece_bytes
        async for chunk in body:
            for start in range(0, len(chunk), size):
                piece = chunk[start : start + size]
                await self.take(len(piece), lambda: progress(0))
                yield piece
