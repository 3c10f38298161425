"""Write downloaded objects to files: decompress them, and check sizes and digest.

Objects are not trusted: the sizes and the digest in the manifest are the limits, and reading stops where an object
exceeds one. Gzip members are read in sequence. Memory is bounded by a few pieces: while one is decompressed and
written, the one before is hashed and the next one is downloaded.
"""

import asyncio
import hashlib
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
from agent.adapters.disk_errors import not_writable
from agent.domain.errors import StagingFull, WireError
from agent.domain.upload_parts import Compression

PIECE_BYTES = 1024 * 1024
"""Maximum number of bytes that are decompressed at once."""

SPARE_BYTES = 256 * 2**20
"""Space that must stay free on the disk."""

BATCH_BYTES = 1024 * 1024
"""Number of downloaded bytes that are passed to the thread at once."""

_GZIP = 16 + zlib.MAX_WBITS
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
    """Unpacks into temporary folders in `directory`, which exists and is not used by others."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._not_removed: set[Path] = set()

    @asynccontextmanager
    async def folder(self, size: int) -> AsyncIterator[Path]:
        """Create a folder for `size` bytes; remove it with its contents when the block ends.

        A folder that cannot be removed then is removed before the next one is created. Raises StagingFull, StateError.
        """
        folder = await asyncio.to_thread(self._make, size)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(self._remove, folder))

    async def sweep(self) -> None:
        """Remove all folders, including those of killed processes."""
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
        """Write the uncompressed bytes of an object to a new file at `path`.

        Raises WireError if they are not the expected bytes. It is transient, because the object may be incomplete yet,
        unless the object exceeds an expected size. Raises StagingFull, StateError for the disk.
        """
        file = await asyncio.to_thread(_UnpackedFile, path, compression, stored_size, raw_size)
        writing: asyncio.Task[None] | None = None
        batch: list[bytes] = []
        size = 0
        try:
            async for piece in pieces:
                batch.append(piece)
                size += len(piece)
                if size >= BATCH_BYTES:
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(asyncio.to_thread(file.add, b"".join(batch)), name="unpack")
                    batch, size = [], 0
            if writing is not None:
                await writing
            await asyncio.to_thread(file.add, b"".join(batch))
            await asyncio.to_thread(file.finish, sha256)
        finally:
            await asyncio.shield(asyncio.create_task(_close(file, writing), name="unpack-close"))

    def _make(self, size: int) -> Path:
        for left in list(self._not_removed):
            self._remove(left)
        try:
            free = shutil.disk_usage(self._directory).free
            if free < size + SPARE_BYTES:
                raise StagingFull(
                    f"the download needs {size + SPARE_BYTES:,} bytes free in {self._directory}, which has {free:,}",
                    hint="free disk space there, or set akosha_agent_state_dir to a directory on a larger disk",
                    transient=True,
                )
            return Path(tempfile.mkdtemp(prefix="ingest-", dir=self._directory))
        except OSError as error:
            raise not_writable(self._directory, error) from error

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            self._not_removed.add(folder)
        else:
            self._not_removed.discard(folder)

    def _sweep(self) -> None:
        for folder in self._directory.glob("ingest-*"):
            shutil.rmtree(folder, ignore_errors=True)


class _UnpackedFile:
    """A file that is being written. Call its methods one at a time, from any thread."""

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
            raise not_writable(path, error) from error

    def add(self, piece: bytes) -> None:
        self._stored += len(piece)
        if self._stored > self._stored_limit:
            raise WireError(f"{self._path.name} is larger than the {self._stored_limit} bytes in its manifest")
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
            raise self._not_valid(error) from error

    def finish(self, sha256: str) -> None:
        """Check that the file is complete. Flushes the file, without fsync."""
        try:
            while self._gzip and not self._member.eof and (tail := self._member.decompress(b"", PIECE_BYTES)):
                self._write(tail)
        except _NotGzip as error:
            raise self._not_valid(error) from error
        complete = self._stored == self._stored_limit and self._raw == self._raw_limit
        if not complete or (self._gzip and not self._member.eof):
            raise WireError(
                f"{self._path.name} has {self._stored} bytes, {self._raw} uncompressed, but its manifest records "
                f"{self._stored_limit} and {self._raw_limit}",
                transient=True,
            )
        self._await_hashes(0)
        if self._digest.hexdigest() != sha256:
            raise WireError(f"{self._path.name} does not have the SHA-256 in its manifest", transient=True)
        try:
            self._file.flush()
        except OSError as error:
            raise not_writable(self._path, error) from error

    def close(self) -> None:
        self._hasher.shutdown()
        try:
            self._file.close()
        except OSError as error:
            raise not_writable(self._path, error) from error

    def _not_valid(self, error: Exception) -> WireError:
        text = str(error)
        if any(word in text for word in ("checksum", "data check", "length check")):  # isal's word, and zlib's
            return WireError(f"{self._path.name} is damaged: it is gzip with a wrong checksum", transient=True)
        return WireError(f"{self._path.name} is not valid gzip: {text}", transient=True)

    def _write(self, raw: bytes) -> None:
        self._raw += len(raw)
        if self._raw > self._raw_limit:
            raise WireError(f"{self._path.name} unpacks to more than the {self._raw_limit} bytes in its manifest")
        self._await_hashes(_BEING_HASHED - 1)
        self._hashed.append(self._hasher.submit(self._digest.update, raw))
        try:
            self._file.write(raw)
        except OSError as error:
            raise not_writable(self._path, error) from error

    def _await_hashes(self, count: int) -> None:
        while len(self._hashed) > count:
            self._hashed.popleft().result()


async def _close(file: _UnpackedFile, writing: asyncio.Task[None] | None) -> None:
    """Wait for the write in progress, then close the file."""
    if writing is not None:
        await asyncio.gather(writing, return_exceptions=True)  # its error, or an earlier one, is already raised
    await asyncio.to_thread(file.close)
