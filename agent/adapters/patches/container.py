"""The format of a patch: a header and steps, which say how a file is made from a reference.

    AKPATCH1
    record  {"reference": size of the reference, "size": size of the file}
    record  {"from": [[offset, length], ...], "to": [[offset, length], ...], "frame": number of bytes}, then the frame
    ...

A record is its length (four bytes, little-endian) and JSON. A step reads the ranges `from` of the reference, makes the
bytes of the ranges `to` of the file, in their order, and never more than MOST_STEP_BYTES. Without a frame these are the
bytes that it read. Else they are the content of the frame, which is Zstandard with the bytes that it read as prefix (as
`zstd --patch-from` makes one; without a prefix if it read none).
The steps make every byte of the file once, so a patch that ends early is recognized.

A patch is not trusted.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from agent.adapters.patches.zstd import LEAST_PREFIX_BYTES, MOST_STEP_BYTES, PIECE_BYTES
from agent.domain.errors import WireError

Range = tuple[int, int]
"""Offset and length. The length is at least 1."""

MAGIC = b"AKPATCH1"
MOST_FILE_BYTES = 2**50

MOST_RANGES = 2**18
"""Maximum number of ranges in a patch: memory grows with them."""

_LENGTH_BYTES = 4
_MOST_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """`frame`: the number of bytes of the frame that follows the record, 0 for none. `position`: its offset."""

    sources: Sequence[Range]
    targets: Sequence[Range]
    frame: int = 0
    position: int = 0

    @property
    def size(self) -> int:
        """The number of bytes that the step makes."""
        return total(self.targets)


def total(ranges: Sequence[Range]) -> int:
    return sum(length for _, length in ranges)


def encode_header(reference_size: int, size: int) -> bytes:
    return MAGIC + _record({"reference": reference_size, "size": size})


def encode_step(step: Step) -> bytes:
    """Return the record of a step, without its frame."""
    return _record({"from": step.sources, "to": step.targets, "frame": step.frame})


def _record(document: object) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


class PatchReader:
    """Reads a patch. Raises WireError if it is not valid."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        if self._read(len(MAGIC)) != MAGIC:
            raise WireError("it is not a patch")
        self.reference_size, self.size = self._header()

    def steps(self) -> list[Step]:
        """Return the steps. Can be called once."""
        steps, made = list[Step](), _Ranges()
        left, count = self.size, 0
        while left:
            step = self._step()
            self._file.seek(step.frame, os.SEEK_CUR)
            count += len(step.sources) + len(step.targets)
            if count > MOST_RANGES:
                raise WireError("it has too many ranges")
            for target in step.targets:
                made.add(target)
            left -= step.size
            steps.append(step)
        if self._file.read(1):
            raise WireError("there are bytes after its end")
        return steps

    def frame(self, step: Step) -> Iterator[bytes]:
        """Yield the frame of a step in pieces."""
        self._file.seek(step.position)
        left = step.frame
        while left:
            piece = self._read(min(PIECE_BYTES, left))
            left -= len(piece)
            yield piece

    def _header(self) -> tuple[int, int]:
        document = self._document({"reference", "size"})
        return _number(document["reference"], MOST_FILE_BYTES), _number(document["size"], MOST_FILE_BYTES)

    def _step(self) -> Step:
        document = self._document({"from", "to", "frame"})
        step = Step(
            _ranges(document["from"], self.reference_size),
            _ranges(document["to"], self.size),
            _number(document["frame"], 2 * MOST_STEP_BYTES),
            self._file.tell(),
        )
        if not step.targets or max(step.size, total(step.sources)) > MOST_STEP_BYTES:
            raise WireError("a step is too large or makes nothing")
        if step.frame and 0 < total(step.sources) < LEAST_PREFIX_BYTES:
            raise WireError("a frame refers to too few bytes")
        if not step.frame and total(step.sources) != step.size:
            raise WireError("a step does not copy as many bytes as it makes")
        return step

    def _document(self, keys: set[str]) -> dict[str, object]:
        length = int.from_bytes(self._read(_LENGTH_BYTES), "little")
        if length > _MOST_RECORD_BYTES:
            raise WireError("a record is too long")
        try:
            document = json.loads(self._read(length))
        except (ValueError, RecursionError) as error:
            raise WireError("a record is not JSON") from error
        if not isinstance(document, dict) or document.keys() != keys:
            raise WireError(f"a record does not have the keys {', '.join(sorted(keys))}")
        return document

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise WireError("it is incomplete")
        return data


class _Ranges:
    """Ranges that do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, added: Range) -> None:
        start, end = added[0], added[0] + added[1]
        at = bisect_left(self._starts, start)
        if (at and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end):
            raise WireError("two steps make the same bytes")
        self._starts.insert(at, start)
        self._ends.insert(at, end)


def _ranges(value: object, limit: int) -> list[Range]:
    if not isinstance(value, list):
        raise WireError("ranges are not a list")
    return [_range(entry, limit) for entry in value]


def _range(value: object, limit: int) -> Range:
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004 - a pair
        raise WireError("a range is not a pair")
    offset, length = _number(value[0], limit), _number(value[1], limit)
    if not length or offset + length > limit:
        raise WireError("a range is empty or not within the file")
    return offset, length


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise WireError("a number is out of range")
    return value
