"""No faster than the settings allow: a bucket of tokens, a token a byte, that all who send share.

What is small goes when the bucket holds enough for it. What is larger than the bucket goes when that is full, and those
after it wait until it is paid for. So no stretch of time sees more than the rate allows and the one largest piece, or
the bucket, on top.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime

from agent.domain.memories import Memory
from agent.ports import (
    Capabilities,
    Clock,
    Creation,
    MemorySink,
    ObjectStore,
    Packed,
    Progress,
    StoredObject,
    StoreResult,
    untold,
)

FULL_SECONDS = 0.25
"""So much of the rate fits into the bucket."""

SIGN_SECONDS = 1.0
"""How often whoever is held back gives a sign of life."""


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
    """`bytes_per_second`, above 0, for all who `take` together, first come first served."""

    bytes_per_second: float
    clock: Clock

    _bucket: TokenBucket = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _waiting: list[Callable[[], None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._bucket = TokenBucket.of(self.bytes_per_second, self.clock.monotonic())

    @property
    def piece_bytes(self) -> int:
        """Who cuts what it sends into pieces of this size sends evenly."""
        return max(int(self._bucket.full / 2), 1)

    async def take(self, count: int, held_back: Callable[[], None]) -> None:
        """Return when so many bytes may go; `held_back` is called every second until then, also while others go first.

        Cancelled, it has taken nothing.
        """
        self._waiting.append(held_back)
        try:
            async with self._turn:
                while (wait := self._bucket.wait(count, self.clock.monotonic())) > 0:
                    for tell in tuple(self._waiting):
                        tell()
                    await self.clock.sleep(min(wait, SIGN_SECONDS))
                self._bucket = self._bucket.taken(count, self.clock.monotonic())
        finally:
            self._waiting.remove(held_back)


@dataclass(slots=True)
class RateLimitedStore:
    """An `ObjectStore` to which bodies go at a pace: for one that sends a piece on when it gets it.

    One that gathers them into parts paces itself: here it would pay while it gathers, and send in bursts.
    """

    store: ObjectStore
    rate_limiter: RateLimiter

    @property
    def location(self) -> str:
        return self.store.location

    async def is_available(self) -> bool:
        return await self.store.is_available()

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
    ) -> StoredObject:
        async with aclosing(self._paced(body, progress)) as paced:
            return await self.store.put(key, paced, metadata=metadata, part_bytes=part_bytes, progress=progress)

    async def _paced(self, body: AsyncIterable[bytes], progress: Progress) -> AsyncGenerator[bytes, None]:
        size = self.rate_limiter.piece_bytes
        async for whole in body:
            for start in range(0, len(whole), size):
                piece = whole[start : start + size]
                await self.rate_limiter.take(len(piece), lambda: progress(0))
                yield piece

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        return await self.store.create(key, data, replace=replace)

    async def copy(self, source: str, key: str, *, expected: StoredObject, progress: Progress = untold) -> StoredObject:
        return await self.store.copy(source, key, expected=expected, progress=progress)

    async def head(self, key: str) -> StoredObject:
        return await self.store.head(key)

    async def inspect(self, key: str, *, progress: Progress = untold) -> StoredObject:
        return await self.store.inspect(key, progress=progress)

    def get(self, key: str) -> AsyncGenerator[bytes, None]:
        return self.store.get(key)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        return self.store.list(prefix, start_after=start_after)

    async def delete(self, keys: Collection[str]) -> None:
        await self.store.delete(keys)

    async def sweep(self, prefix: str, *, begun_before: datetime | None = None) -> int:
        return await self.store.sweep(prefix, begun_before=begun_before)

    async def aclose(self) -> None:
        await self.store.aclose()


@dataclass(slots=True)
class RateLimitedSink:
    """A `MemorySink` to which batches go at a pace, each as a whole. `held_back` is called while one has to wait."""

    sink: MemorySink
    rate_limiter: RateLimiter
    held_back: Callable[[], None]

    @property
    def location(self) -> str:
        return self.sink.location

    @property
    def bytes_sent(self) -> int:
        return self.sink.bytes_sent

    @property
    def sessions(self) -> int:
        return self.sink.sessions

    @property
    def health_version(self) -> str:
        return self.sink.health_version

    async def is_available(self) -> bool:
        return await self.sink.is_available()

    async def connect(self) -> Capabilities:
        return await self.sink.connect()

    def pack(self, memory: Memory, system_id: str) -> Packed:
        return self.sink.pack(memory, system_id)

    async def store(self, batch: Sequence[Packed]) -> StoreResult:
        await self.rate_limiter.take(sum(len(packed.body) for packed in batch), self.held_back)
        return await self.sink.store(batch)

    async def aclose(self) -> None:
        await self.sink.aclose()
