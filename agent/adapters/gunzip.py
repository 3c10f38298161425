"""Objects of uploads as files again: gunzipped, measured and hashed on their way into a folder of our own.

Nothing of what comes in is believed: the sizes and the digest that the manifest tells are the limits, and where an
object goes beyond them, reading ends there. Members are read in a row; memory is bounded by a few pieces: while one
is unpacked and written, the one before it is hashed, and the next one is on its way.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, cast

from agent.adapters import fs
from agent.domain.errors import StagingFull, StateError, WireError
from agent.domain.manifest import Compression

PIECE_BYTES = 1024 * 1024
"""How much comes out of a compressed piece at once."""

SPARE_BYTES = 256 * 2**20
"""What stays free on the disk."""

BATCH_BYTES = 1024 * 1024
"""How much of what comes in is handed over at once."""

_GZIP = 16 + zlib.MAX_WBITS
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BEING_HASHED = 2


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _fastest_inflater() -> tuple[Callable[[], _Inflater], type[Exception]]:
    try:
        from isal import isal_zlib  # noqa: PLC0415 - not every platform has a wheel
    except ImportError:
        return lambda: zlib.decompressobj(_GZIP), zlib.error

    def isal_inflater() -> _Inflater:
        inflater: _Inflater = isal_zlib.decompressobj(_GZIP)
        return inflater

    return isal_inflater, cast(type[Exception], isal_zlib.error)


_inflater, _NotGzip = _fastest_inflater()


class Unpacker:
    """Folders below `place`, which is there already and ours alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def folder(self, size: int) -> AsyncIterator[Path]:
        """Make a folder for `size` bytes, and remove it with all that is in it when the block ends.

        Raises StagingFull, StateError.
        """
        folder = await asyncio.to_thread(self._make, size)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def sweep(self) -> None:
        """Remove every folder, also those of a process that was killed."""
        await asyncio.to_thread(self._sweep)

    async def unpack(
        self,
        pieces: AsyncIterable[bytes],
        path: Path,
        *,
        compression: Compression,
        stored_size: int,
        raw_size: int,
        sha256: str,
    ) -> None:
        """Write the raw bytes of an object to a new file at `path`.

        Raises WireError where they are not what is expected: transient, for it may be on its way there yet; not so for
        what goes on after its size, however little of it has come. Raises StagingFull, StateError for the disk.
        """
        file = await asyncio.to_thread(_Incoming, path, compression, stored_size, raw_size)
        taking: asyncio.Task[None] | None = None
        batch: list[bytes] = []
        size = 0
        try:
            async for piece in pieces:
                batch.append(piece)
                size += len(piece)
                if size >= BATCH_BYTES:
                    if taking is not None:
                        await taking
                    taking = asyncio.create_task(asyncio.to_thread(file.take, b"".join(batch)), name="landing")
                    batch, size = [], 0
            if taking is not None:
                await taking
            await asyncio.to_thread(file.take, b"".join(batch))
            await asyncio.to_thread(file.finish, sha256)
        finally:
            await asyncio.shield(asyncio.create_task(_closed(file, taking), name="landing-close"))

    def _make(self, size: int) -> Path:
        try:
            free = shutil.disk_usage(self._directory).free
            if free < size + SPARE_BYTES:
                raise StagingFull(
                    f"{size} bytes are to be downloaded, and {self._directory} has room for {free}",
                    hint="make room there, or set akosha_agent_state_dir to a larger disk",
                    transient=True,
                )
            return Path(tempfile.mkdtemp(prefix="ingest-", dir=self._directory))
        except OSError as error:
            raise _unusable(self._directory, error) from error

    def _sweep(self) -> None:
        for folder in self._directory.glob("ingest-*"):
            shutil.rmtree(folder, ignore_errors=True)


class _Incoming:
    """A file that is being written. Its calls come one at a time, from any thread."""

    def __init__(self, path: Path, compression: Compression, stored_size: int, raw_size: int) -> None:
        self._path, self._stored_limit, self._raw_limit = path, stored_size, raw_size
        self._stored = self._raw = 0
        self._digest = hashlib.sha256()
        self._gzip = compression == "gzip"
        self._member = _inflater()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hashed: deque[Future[None]] = deque()
        try:
            self._file = fs.create(path)
        except OSError as error:
            raise _unusable(path, error) from error

    def take(self, piece: bytes) -> None:
        self._stored += len(piece)
        if self._stored > self._stored_limit:
            raise WireError(f"{self._path.name} is larger than the {self._stored_limit} bytes that its manifest tells")
        if not self._gzip:
            self._write(piece)
            return
        try:
            while piece:
                if self._member.eof:
                    self._member = _inflater()
                self._write(self._member.decompress(piece, PIECE_BYTES))
                piece = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        except _NotGzip as error:
            raise WireError(f"{self._path.name} is no gzip: {error}", transient=True) from error

    def finish(self, sha256: str) -> None:
        """Check that all of it has come, and nothing else. The file is on its way to the disk, no more."""
        try:
            while self._gzip and not self._member.eof and (tail := self._member.decompress(b"", PIECE_BYTES)):
                self._write(tail)
        except _NotGzip as error:
            raise WireError(f"{self._path.name} is no gzip: {error}", transient=True) from error
        whole = self._stored == self._stored_limit and self._raw == self._raw_limit
        if not whole or (self._gzip and not self._member.eof):
            raise WireError(
                f"{self._path.name} has {self._stored} bytes, {self._raw} unpacked; its manifest tells "
                f"{self._stored_limit} and {self._raw_limit}",
                transient=True,
            )
        self._await_hashes(0)
        if self._digest.hexdigest() != sha256:
            raise WireError(f"{self._path.name} has another SHA-256 than its manifest tells", transient=True)
        try:
            self._file.flush()
        except OSError as error:
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        self._hasher.shutdown()
        try:
            self._file.close()
        except OSError as error:
            raise _unusable(self._path, error) from error

    def _write(self, raw: bytes) -> None:
        self._raw += len(raw)
        if self._raw > self._raw_limit:
            raise WireError(f"{self._path.name} unpacks to more than the {self._raw_limit} bytes its manifest tells")
        self._await_hashes(_BEING_HASHED - 1)
        self._hashed.append(self._hasher.submit(self._digest.update, raw))
        try:
            self._file.write(raw)
        except OSError as error:
            raise _unusable(self._path, error) from error

    def _await_hashes(self, count: int) -> None:
        while len(self._hashed) > count:
            self._hashed.popleft().result()


async def _closed(file: _Incoming, taking: asyncio.Task[None] | None) -> None:
    """Close the file as soon as nobody writes to it any more."""
    if taking is not None:
        await asyncio.gather(taking, return_exceptions=True)  # the error is raised already, or one before it was
    await asyncio.to_thread(file.close)


def _unusable(path: Path, error: OSError) -> StateError | StagingFull:
    reason = os.strerror(error.errno) if error.errno else str(error)
    kind = StagingFull if error.errno in _FULL else StateError
    return kind(f"{path} cannot be written: {reason}", hint=f"make room on the disk of {path.parent}", transient=True)
