"""Find the bytes of a file in a reference, wherever they are. Blocks.

The file is compared in blocks. A block that is equal to one of the reference is copied. The others are compressed in
extents, each with the blocks of the reference that contain its bytes. Anchors find these: positions that a regular
expression chooses by the content alone, so that they move with it. The bytes after an anchor identify it.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from agent.adapters.patches.container import Range, total
from agent.adapters.patches.zstd import LEAST_PREFIX_BYTES, MOST_STEP_BYTES

BLOCK_BYTES = 2**18
"""The size of DuckDB's blocks. Files of any other format work as well."""

EXTENT_BYTES = 16 * 2**20
"""Maximum number of bytes that are compressed at once."""

REFERENCE_BYTES = MOST_STEP_BYTES
"""Maximum number of bytes of the reference for one extent."""

_ANCHOR = re.compile(rb"e[\x11\x22\x33\x44\x88\x99\xaak](?=(.{14}))", re.DOTALL)
"""About 32 in a block of random bytes. It begins with one literal byte: `re` searches that ten times as fast as a set.
"k" is for text."""

_MOST_ANCHORS = 160_000
"""Maximum number of anchors in the index, of about 150 bytes each. Only unusual content has more."""

_INDEXED_WHOLE = 2**29
"""Size up to which all anchors of the reference are indexed; of larger ones a part, so that memory is bounded."""

Planned = tuple[Sequence[Range], Sequence[Range], bool]
"""The ranges of the reference and of the file, and whether they have the same bytes."""


@dataclass(slots=True)
class _Extent:
    """Blocks of the file that are compressed together, and the number of their anchors by block of the reference."""

    blocks: list[int]
    found: Counter[int]


def plan(reference: BinaryIO, reference_size: int, file: BinaryIO, size: int) -> Iterator[Planned]:
    """Yield the ranges of the steps that make the file. Raises OSError."""
    return _Plan(reference, reference_size, file, size).steps()


class _Plan:
    def __init__(self, reference: BinaryIO, reference_size: int, file: BinaryIO, size: int) -> None:
        self._reference, self._reference_size = reference, reference_size
        self._file, self._size = file, size
        self._every = 1 + reference_size // _INDEXED_WHOLE
        self._index: dict[bytes, int] = {}
        self._unchanged = bytearray(_count(size))

    def steps(self) -> Iterator[Planned]:
        self._compare()
        copied = _Copies()
        extent = _Extent([], Counter())
        for number in range(_count(self._size)):
            source: int | None = number
            if not self._unchanged[number]:
                block = self._block(number)
                found = Counter(self._index[key] for key in self._anchors(block) if key in self._index)
                source = self._equal(block, found)
            if source is not None:
                length = min(BLOCK_BYTES, self._size - number * BLOCK_BYTES)
                if copied.size + length > MOST_STEP_BYTES:
                    yield copied.planned()
                    copied = _Copies()
                copied.add(source * BLOCK_BYTES, number * BLOCK_BYTES, length)
                continue
            extent.blocks.append(number)
            extent.found.update(found)
            if len(extent.blocks) * BLOCK_BYTES == EXTENT_BYTES:
                yield self._planned(extent)
                extent = _Extent([], Counter())
        if copied.size:
            yield copied.planned()
        if extent.blocks:
            yield self._planned(extent)

    def _compare(self) -> None:
        """Index the anchors of the reference, and find the blocks that are unchanged."""
        for number in range(max(_count(self._reference_size), _count(self._size))):
            old = os.pread(self._reference.fileno(), BLOCK_BYTES, number * BLOCK_BYTES)
            for key in self._anchors(old):
                if key in self._index or len(self._index) < _MOST_ANCHORS:
                    self._index[key] = number
            if number < len(self._unchanged):
                new = self._block(number)
                self._unchanged[number] = old.startswith(new)

    def _anchors(self, block: bytes) -> list[bytes]:
        keys: list[bytes] = _ANCHOR.findall(block)
        return keys if self._every == 1 else [key for key in keys if key[0] % self._every == 0]

    def _block(self, number: int) -> bytes:
        return os.pread(self._file.fileno(), BLOCK_BYTES, number * BLOCK_BYTES)

    def _equal(self, block: bytes, found: Counter[int]) -> int | None:
        """Return the block of the reference that is equal to a block of the file, None if there is none."""
        for number, _ in found.most_common(1):
            if os.pread(self._reference.fileno(), len(block), number * BLOCK_BYTES) == block:
                return number
        return None

    def _planned(self, extent: _Extent) -> Planned:
        wanted = [number for number, _ in extent.found.most_common()]
        # Blocks without an anchor in common may have changed in place.
        wanted += [n for n in extent.blocks if n not in extent.found and n < _count(self._reference_size)]
        sources = sorted(wanted[: REFERENCE_BYTES // BLOCK_BYTES])
        ranges = _joined(sources, self._reference_size)
        if total(ranges) < LEAST_PREFIX_BYTES:
            ranges = []
        return ranges, _joined(extent.blocks, self._size), False


class _Copies:
    """Blocks that are copied, as ranges."""

    def __init__(self) -> None:
        self._sources: list[Range] = []
        self._targets: list[Range] = []
        self.size = 0

    def add(self, source: int, target: int, length: int) -> None:
        _append(self._sources, source, length)
        _append(self._targets, target, length)
        self.size += length

    def planned(self) -> Planned:
        return self._sources, self._targets, True


def _append(ranges: list[Range], offset: int, length: int) -> None:
    """Append a range; join it with the last one if it follows it."""
    if ranges and sum(ranges[-1]) == offset:
        offset, length = ranges[-1][0], ranges.pop()[1] + length
    ranges.append((offset, length))


def _joined(blocks: Sequence[int], size: int) -> list[Range]:
    ranges: list[Range] = []
    for number in blocks:
        _append(ranges, number * BLOCK_BYTES, min(BLOCK_BYTES, size - number * BLOCK_BYTES))
    return ranges


def _count(size: int) -> int:
    """Return the number of blocks."""
    return -(-size // BLOCK_BYTES)
