"""Files with row sets: 128-bit hashes of rows of one database.

A row set has chunks. Each has the hashes of the rows in one range of one table, so that a change of a few rows changes
a few chunks. A file has its chunks in the order of their numbers: number, count of hashes (both big-endian), hashes.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.adapters import fs
from agent.adapters.disk_errors import not_writable
from agent.domain.errors import SnapshotError

HASH_BYTES = 16

_HEAD = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The hashes of the rows in one range, 16 bytes each, in any order."""

    number: int
    hashes: bytes

    def split(self) -> list[bytes]:
        """Return the single hashes."""
        return split(self.hashes)


def split(hashes: bytes | bytearray) -> list[bytes]:
    """Return the single hashes."""
    return [bytes(hashes[at : at + HASH_BYTES]) for at in range(0, len(hashes), HASH_BYTES)]


def write(path: Path, chunks: Iterable[Chunk]) -> None:
    """Create the file (mode 0600), or replace it. Blocks. Raises StagingFull, StateError for the disk."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with fs.create(path) as file:
            for chunk in chunks:
                file.write(_HEAD.pack(chunk.number, len(chunk.hashes) // HASH_BYTES))
                file.write(chunk.hashes)
    except OSError as error:
        raise not_writable(path, error) from error


def read(path: Path) -> Iterator[Chunk]:
    """Yield the chunks of a file. Blocks. Raises SnapshotError if it is invalid or cannot be read."""
    last = -1
    try:
        with path.open("rb") as file:
            while head := file.read(_HEAD.size):
                if len(head) < _HEAD.size:
                    raise SnapshotError(f"{path.name} is incomplete")
                number, count = _HEAD.unpack(head)
                hashes = file.read(count * HASH_BYTES)
                if len(hashes) < count * HASH_BYTES or number <= last:
                    raise SnapshotError(f"{path.name} is invalid")
                yield Chunk(number, hashes)
                last = number
    except OSError as error:
        raise SnapshotError(f"the hashes of the rows cannot be read: {error.strerror}", transient=True) from error
