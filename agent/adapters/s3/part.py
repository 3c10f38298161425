"""A part of a body in memory, and the request body that sends it."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agent.ports import Progress, RateLimiter

WIRE_BYTES = 128 * 1024
_SMALL = 64 * 1024

Chunk = bytes | bytearray | memoryview


@dataclass(slots=True)
class Part:
    """The chunks as received. Large chunks are not joined or copied, and are freed with their part."""

    chunks: list[Chunk] = field(default_factory=list)
    size: int = 0

    def append(self, chunk: Chunk) -> None:
        self.size += len(chunk)
        last = self.chunks[-1] if self.chunks else None
        if isinstance(last, bytearray) and len(last) + len(chunk) <= _SMALL:
            last += chunk
        elif len(chunk) < _SMALL:
            self.chunks.append(bytearray(chunk))
        else:
            self.chunks.append(chunk)

    def md5(self) -> bytes:
        """Return the MD5 of the bytes, for ETag and Content-MD5. CPU-bound: call it off the event loop."""
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in self.chunks:
            digest.update(chunk)
        return digest.digest()


async def parts(body: AsyncIterable[bytes], part_bytes: int) -> AsyncIterator[Part]:
    """Yield parts of exactly `part_bytes`; the last one may be shorter. An empty body is one empty part."""
    part = Part()
    yielded = False
    async for piece in body:
        rest = memoryview(piece)
        while len(rest) > part_bytes - part.size:
            room = part_bytes - part.size
            part.append(rest[:room])
            rest = rest[room:]
            complete, part = part, Part()
            yield complete
            yielded = True
            del complete
        part.append(rest)
    if part.size or not yielded:
        yield part


def content_md5(md5: bytes) -> str:
    """Return the value of the Content-MD5 header."""
    return base64.b64encode(md5).decode()


class PartProgress:
    """Reports the progress of one part. Each byte counts once; bytes that are sent again count 0."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._furthest = 0

    def reached(self, position: int) -> None:
        self._progress(max(0, position - self._furthest))
        self._furthest = max(self._furthest, position)

    def waiting(self) -> None:
        """Report that the part waits for the rate limiter: no bytes, but not a stall either."""
        self._progress(0)


class PartBody:
    """A part as a request body for botocore and aiohttp.

    aiohttp iterates over the body and takes the next slice only after the connection has accepted the previous one.
    Progress is therefore reported when bytes are sent. Each request iterates from the start. botocore reads the length,
    and rewinds before a retry. It would call `read` only to sign the payload, which this store does not do.

    With a `rate_limiter`, each slice waits before it is sent, also one that is sent again. Waiting reports progress of
    0 bytes.

    A request with this body has `Expect: 100-continue`, so that a refusal costs no bytes. aiohttp waits without limit
    for the server's consent; `limit_wait` limits that wait until the first bytes are sent.
    """

    def __init__(
        self, chunks: Sequence[Chunk], size: int, progress: Progress, rate_limiter: RateLimiter | None = None
    ) -> None:
        self._chunks = chunks
        self._size = size
        self._progress = PartProgress(progress)
        self._rate_limiter = rate_limiter
        self._slice_bytes = WIRE_BYTES if rate_limiter is None else min(WIRE_BYTES, rate_limiter.piece_bytes)
        self._position = 0
        self._wait_limit: asyncio.Timeout | None = None
        self._wait_seconds = 0.0

    @asynccontextmanager
    async def limit_wait(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError if a request within the block waits longer than this for permission to send."""
        async with asyncio.timeout(seconds) as self._wait_limit:
            self._wait_seconds = seconds
            yield

    def __len__(self) -> int:
        return self._size

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        if self._wait_limit is not None:
            self._wait_limit.reschedule(None)
        sent = 0
        for chunk in self._chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), self._slice_bytes):
                piece = view[start : start + self._slice_bytes]
                if self._rate_limiter is not None:
                    await self._rate_limiter.take(len(piece), self._progress.waiting)
                yield piece
                sent += len(piece)
                self._progress.reached(sent)

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size < 0 else min(self._size, start + size)
        self._position = end
        return b"".join(self._chunks)[start:end]

    def seek(self, offset: int, whence: int = 0) -> int:
        if self._wait_limit is not None:
            self._wait_limit.reschedule(asyncio.get_running_loop().time() + self._wait_seconds)
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position
