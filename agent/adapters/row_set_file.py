"""Files with row sets: 128-bit hashes of rows of one database.

A row set has chunks. Each has the hashes of the rows in one range of one table, so that a change of a few rows changes
a few chunks. A file begins with the origin, 32 bytes. Its chunks are in the order of their numbers: number, whether it
is stored, count of hashes, hashes. Numbers are big-endian.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.adapters.disk_errors import not_writable
from agent.domain.errors import SnapshotError

HASH_BYTES = 16

ORIGIN_BYTES = 32
NO_ORIGIN = bytes(ORIGIN_BYTES)
"""The origin of a row set without stored chunks."""

_HEAD = struct.Struct(">Q?I")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The hashes of the rows in one range, 16 bytes each, in any order.

    `stored`: they are the rows that the database's main file has there, without any from a WAL.
    """

    number: int
    stored: bool
    hashes: bytes

    def split(self) -> list[bytes]:
        """Return the single hashes."""
        return split(self.hashes)


def split(hashes: bytes | bytearray) -> list[bytes]:
    """Return the single hashes."""
    return [bytes(hashes[at : at + HASH_BYTES]) for at in range(0, len(hashes), HASH_BYTES)]


def write(path: Path, origin: bytes, chunks: Iterable[Chunk]) -> None:
    """Create the file (mode 0600), or replace it. Blocks. Raises StagingFull, StateError for the disk.

    `origin`: a digest of the main file that stored chunks are from.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with fs.create(path) as file:
            file.write(origin)
            for chunk in chunks:
                file.write(_HEAD.pack(chunk.number, chunk.stored, len(chunk.hashes) // HASH_BYTES))
                file.write(chunk.hashes)
    except OSError as error:
        raise not_writable(path, error) from error


def read_origin(path: Path) -> bytes:
    """Return the origin of the stored chunks in a file. Blocks. Raises SnapshotError."""
    with _opened(path) as file:
        return _origin(file, path)


def read(path: Path) -> Iterator[Chunk]:
    """Yield the chunks of a file. Blocks. Raises SnapshotError if it is invalid or cannot be read."""
    last = -1
    with _opened(path) as file:
        _origin(file, path)
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                raise SnapshotError(f"{path.name} is incomplete")
            number, stored, count = _HEAD.unpack(head)
            hashes = file.read(count * HASH_BYTES)
            if len(hashes) < count * HASH_BYTES or number <= last:
                raise SnapshotError(f"{path.name} is invalid")
            yield Chunk(number, stored, hashes)
            last = number


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SnapshotError(f"the hashes of the rows cannot be read: {error.strerror}", transient=True) from error


def _origin(file: BinaryIO, path: Path) -> bytes:
    origin = file.read(ORIGIN_BYTES)
    if len(origin) < ORIGIN_BYTES:
        raise SnapshotError(f"{path.name} is incomplete")
    return origin
