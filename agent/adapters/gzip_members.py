"""Compress a staged file for the store: gzip in independent members, or uncompressed.

A member contains 8 MiB of raw bytes and is independent of the others, so several threads compress in parallel. Any gzip
reader reads the members in sequence as one file. The output depends on the input alone (no name or time in the
headers), so a part that is sent again has the same bytes.

Memory is bounded: it holds one compressed member per thread, and the member that is being yielded. Each thread holds
one piece of raw bytes.
"""

import asyncio
import os
import threading
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.adapters.block_checksums import BLOCK_BYTES, BlockChecksums, ExpectedBlocks
from agent.domain.errors import StateError
from agent.domain.upload_parts import Compression
from agent.ports import Progress, ignore_progress
from agent.ports.concurrency import SharingExecutor

PIECE_BYTES = 512 * 1024
"""Number of raw bytes that are read at once."""

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB_LEVEL = 6


class _Deflater(Protocol):
    def compress(self, data: memoryview, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _zlib_deflater(_level: int) -> _Deflater:
    return zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _GZIP)


def _fastest_deflater() -> Callable[[int], _Deflater]:
    try:
        from isal import isal_zlib  # noqa: PLC0415 - not every platform has a wheel
    except ImportError:
        return _zlib_deflater

    def isal_deflater(level: int) -> _Deflater:
        deflater: _Deflater = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _GZIP)
        return deflater

    return isal_deflater


class Uncompressed:
    """A `Compressor` that does not compress."""

    @property
    def compression(self) -> Compression:
        return "none"

    async def stream(
        self, path: Path, *, checksums: Sequence[int] | None = None, read: Progress = ignore_progress
    ) -> AsyncGenerator[bytes, None]:
        """Yield the file's bytes. Raises StateError if the staged file cannot be read, StagedCopyChanged."""
        expected = ExpectedBlocks(path.name, checksums)
        size = await asyncio.to_thread(_size, path)
        expected.check_size(size)
        for offset in range(0, size, BLOCK_BYTES):
            piece = await asyncio.to_thread(_block, path, offset, min(BLOCK_BYTES, size - offset), expected)
            read(len(piece))
            yield piece


class GzipMembers:
    """A `Compressor` that makes gzip members of `member_bytes` raw bytes in `threads` threads.

    `level` is igzip's, 0 to 3. Without igzip, zlib's level 6 is used: about the same size, a sixth of the speed.
    """

    def __init__(self, *, level: int = 3, member_bytes: int = 8 * 2**20, threads: int = 2) -> None:
        self._level = level
        self._member_bytes = member_bytes
        self._threads = threads
        self._deflater = _fastest_deflater()

    @property
    def compression(self) -> Compression:
        return "gzip"

    async def stream(
        self, path: Path, *, checksums: Sequence[int] | None = None, read: Progress = ignore_progress
    ) -> AsyncGenerator[bytes, None]:
        """Yield the file as gzip members; an empty file is one empty member.

        Raises StateError if the staged file cannot be read, or became shorter meanwhile; StagedCopyChanged. The threads
        have ended when the iteration ends.
        """
        expected = ExpectedBlocks(path.name, checksums)
        size = await asyncio.to_thread(_size, path)
        expected.check_size(size)
        offsets = iter(range(0, max(size, 1), self._member_bytes))
        stop = threading.Event()
        executor = SharingExecutor(self._threads, thread_name_prefix="gzip")
        loop = asyncio.get_running_loop()
        ahead: deque[asyncio.Future[deque[tuple[bytes, int]]]] = deque()

        def begin_next() -> None:
            if (offset := next(offsets, None)) is not None:
                length = min(self._member_bytes, size - offset)
                ahead.append(loop.run_in_executor(executor, self._member, path, offset, length, expected, stop))

        try:
            for _ in range(self._threads):
                begin_next()
            while ahead:
                member = await ahead[0]
                ahead.popleft()
                begin_next()  # before yielding: the consumer may be slow
                while member:
                    piece, raw_bytes = member.popleft()
                    read(raw_bytes)
                    yield piece
        finally:
            stop.set()
            await asyncio.gather(*ahead, return_exceptions=True)
            executor.shutdown(wait=False)

    def _member(
        self, path: Path, offset: int, length: int, expected: ExpectedBlocks, stop: threading.Event
    ) -> deque[tuple[bytes, int]]:
        """Return the pieces of one member, each with the number of raw bytes in it.

        They are incomplete if `stop` is set, and are not used then.
        """
        blocks = BlockChecksums()
        deflater = self._deflater(self._level)
        buffer = memoryview(bytearray(min(PIECE_BYTES, max(length, 1))))
        pieces: deque[tuple[bytes, int]] = deque()
        raw_bytes = 0
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                while length and not stop.is_set():
                    count = file.readinto(buffer[: min(len(buffer), length)])
                    if not count:
                        raise _cut_short(path)
                    length -= count
                    raw_bytes += count
                    blocks.update(buffer[:count])
                    if piece := deflater.compress(buffer[:count]):
                        pieces.append((piece, raw_bytes))
                        raw_bytes = 0
        except OSError as error:
            raise _unreadable(path, error) from error
        if not stop.is_set():
            expected.check(offset, blocks)
        pieces.append((deflater.flush(), raw_bytes))
        return pieces


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _block(path: Path, offset: int, count: int, expected: ExpectedBlocks) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            piece = file.read(count)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(piece) < count:
        raise _cut_short(path)
    expected.check(offset, BlockChecksums(piece))
    return piece


def _cut_short(path: Path) -> StateError:
    return StateError(f"the staged copy {path.name} became shorter while it was read", transient=True)


def _unreadable(path: Path, error: OSError) -> StateError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StateError(
        f"the staged copy {path.name} cannot be read: {reason}", hint=f"check {path.parent}", transient=True
    )
