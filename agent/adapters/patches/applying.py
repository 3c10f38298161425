"""Make a file from a reference and a chain of patches. Runs in the child; blocks.

The states between the reference and the file are not written: a state is a list of segments, each of them in the
reference or in a scratch file, which has the contents of the frames of one patch. Only the last patch writes the file.
"""

import hashlib
import os
import shutil
import tempfile
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO, Self

from agent.adapters import fs
from agent.adapters.disk_errors import not_writable
from agent.adapters.patches.container import MOST_RANGES, PatchReader, Range, Step, total
from agent.adapters.patches.zstd import decompress, prefix_of
from agent.domain.errors import PatchError, StagingFull, StateError, WireError

SPARE_BYTES = 32 * 2**20
"""Space that scratch files leave free on the disk."""

_COPIED_BYTES = 2**20

Extract = tuple[FileIO, int, int]
"""A range of a file: the file, the offset and the length."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """`length` bytes at `start` of a state, which are at `offset` of a file."""

    start: int
    length: int
    file: FileIO
    offset: int


class State:
    """The bytes of one state. Its segments cover it without a gap."""

    def __init__(self, segments: Iterable[_Segment]) -> None:
        self._segments = sorted(segments, key=lambda segment: segment.start)
        self._starts = [segment.start for segment in self._segments]

    @classmethod
    def of(cls, file: FileIO, size: int) -> Self:
        return cls([_Segment(0, size, file, 0)] if size else [])

    @property
    def size(self) -> int:
        return sum(segment.length for segment in self._segments)

    @property
    def files(self) -> set[FileIO]:
        return {segment.file for segment in self._segments}

    def extracts(self, ranges: Iterable[Range]) -> Iterator[Extract]:
        """Yield where the bytes of ranges are."""
        for offset, length in ranges:
            start, end = offset, offset + length
            at = bisect_right(self._starts, start) - 1
            while start < end:
                segment = self._segments[at]
                taken = min(segment.start + segment.length, end) - start
                yield segment.file, segment.offset + start - segment.start, taken
                start += taken
                at += 1

    def read(self, ranges: Iterable[Range]) -> Iterator[bytes]:
        """Yield the bytes of ranges in pieces."""
        for file, offset, length in self.extracts(ranges):
            yield from read_pieces(file, offset, length)

    def contents(self, patch: PatchReader) -> Iterator[tuple[Step, Iterator[bytes]]]:
        """Yield the steps of a patch of this state, each with the pieces of the bytes that it makes. Raises WireError.

        A thread reads the next prefix ahead: reading takes about as long as decompressing.
        """
        steps = patch.steps()
        with ThreadPoolExecutor(1, thread_name_prefix="prefix") as executor:
            ahead = deque(executor.submit(self._prefix_of, step) for step in steps[:1])
            for number, step in enumerate(steps, 1):
                content = ahead.popleft().result()
                if step.frame:
                    made = decompress(prefix_of(content), patch.frame(step), step.size)
                else:
                    made = self.read(step.sources)
                del content  # the prefix is a copy; `made` frees it at its end, before the next one is made
                ahead.extend(executor.submit(self._prefix_of, later) for later in steps[number : number + 1])
                yield step, made

    def _prefix_of(self, step: Step) -> bytearray:
        return self.gather(step.sources if step.frame else ())

    def gather(self, ranges: Sequence[Range]) -> bytearray:
        """Return the bytes of ranges."""
        content = bytearray(total(ranges))
        view, position = memoryview(content), 0
        for file, offset, length in self.extracts(ranges):
            end = position + length
            file.seek(offset)
            while position < end:
                try:
                    count = file.readinto(view[position:end])
                except OSError as error:
                    raise _not_readable(file.name, os.strerror(error.errno or 0)) from error
                if not count:
                    raise _not_readable(file.name, "it became shorter")
                position += count
        return content


def read_pieces(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Yield a range of a file in pieces. Raises StateError, also if the file is shorter."""
    while length:
        try:
            piece = os.pread(file.fileno(), min(length, _COPIED_BYTES), offset)
        except OSError as error:
            raise _not_readable(file.name, os.strerror(error.errno or 0)) from error
        if not piece:
            raise _not_readable(file.name, "it became shorter")
        offset, length = offset + len(piece), length - len(piece)
        yield piece


def placed(pieces: Iterable[bytes], targets: Iterable[Range]) -> Iterator[tuple[int, memoryview]]:
    """Yield the pieces with their offsets, cut at the ends of the ranges that they fill."""
    ranges = iter(targets)
    offset = left = 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not left:
                offset, left = next(ranges)
            part = view[:left]
            yield offset, part
            offset, left, view = offset + len(part), left - len(part), view[len(part) :]


def apply_chain(reference: Path, patches: Sequence[Path], file: Path, *, sizes: Sequence[int], sha256: str) -> None:
    """Create `file`, as `Patcher.apply` promises. Removes it if an error occurs."""
    *before, last = zip(patches, sizes, strict=True)
    with ExitStack() as opened:
        chain = _Chain(opened, reference, file.parent)
        for patch, size in before:
            chain.advance(patch, size)
        try:
            output = opened.enter_context(fs.create(file))
        except OSError as error:
            raise not_writable(file, error) from error
        try:
            chain.write(*last, output)
            _check_digest(output, sizes[-1], sha256)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise not_writable(file, error) from error
        except BaseException:
            file.unlink(missing_ok=True)
            raise


class _Chain:
    """A reference and the patches that were applied to it. The open files are closed with `opened`."""

    def __init__(self, opened: ExitStack, reference: Path, folder: Path) -> None:
        self._opened, self._folder = opened, folder
        self._number = 0
        self._scratch: list[FileIO] = []
        file = self._open(reference)
        self._state = State.of(file, os.fstat(file.fileno()).st_size)

    def advance(self, path: Path, size: int) -> None:
        """Apply a patch; write the contents of its frames to a scratch file.

        If the scratch files are larger than the state, they are replaced by one with the whole state.
        """
        segments: list[_Segment] = []
        try:
            scratch = self._new_scratch()
            with self._patch(path, size) as patch:
                for step, pieces in self._state.contents(patch):
                    segments += _segments(self._extracts(step, pieces, scratch), step.targets)
                    if len(segments) > MOST_RANGES:
                        raise WireError("it has too many ranges")
        except OSError as error:
            raise not_writable(self._folder, error) from error
        self._replace_state(State(segments))
        if sum(os.fstat(file.fileno()).st_size for file in self._scratch) > size:
            try:
                scratch, offset = self._new_scratch(), 0
                for piece in self._state.read([(0, size)]):
                    self._check_space()
                    _write(scratch, memoryview(piece), offset)
                    offset += len(piece)
            except OSError as error:
                raise not_writable(self._folder, error) from error
            self._replace_state(State.of(scratch, size))

    def write(self, path: Path, size: int, output: BinaryIO) -> None:
        """Apply the last patch. Raises OSError if `output` cannot be written."""
        with self._patch(path, size) as patch:
            for step, pieces in self._state.contents(patch):
                for offset, piece in placed(pieces, step.targets):
                    _write(output, piece, offset)

    def _extracts(self, step: Step, pieces: Iterable[bytes], scratch: FileIO) -> Iterator[Extract]:
        if not step.frame:
            yield from self._state.extracts(step.sources)
            return
        self._check_space()
        start = offset = os.fstat(scratch.fileno()).st_size
        for piece in pieces:
            _write(scratch, memoryview(piece), offset)
            offset += len(piece)
        yield scratch, start, step.size

    def _new_scratch(self) -> FileIO:
        scratch = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed with the chain
        self._opened.callback(scratch.close)
        self._scratch.append(scratch)
        return scratch

    def _replace_state(self, state: State) -> None:
        self._state = state
        for unused in {*self._scratch} - state.files:
            unused.close()
            self._scratch.remove(unused)

    def _check_space(self) -> None:
        if (free := shutil.disk_usage(self._folder).free) < SPARE_BYTES:
            raise StagingFull(
                f"applying patches needs {SPARE_BYTES:,} bytes free in {self._folder}, which has {free:,}",
                hint="free disk space there",
                transient=True,
            )

    @contextmanager
    def _patch(self, path: Path, size: int) -> Iterator[PatchReader]:
        """Open the next patch, which is one of the current state. A WireError of the block becomes a PatchError."""
        self._number += 1
        with BufferedReader(self._open(path)) as file:
            try:
                patch = PatchReader(file)
                if patch.reference_size != self._state.size:
                    raise WireError(f"it is a patch of {patch.reference_size} bytes, not of {self._state.size}")
                if patch.size != size:
                    raise WireError(f"it makes {patch.size} bytes instead of {size}")
                yield patch
            except WireError as error:
                message = f"{path.name} is not a patch of this file: {error.message}"
                raise PatchError(message, number=self._number) from error

    def _open(self, path: Path) -> FileIO:
        try:
            return self._opened.enter_context(path.open("rb", buffering=0))
        except OSError as error:
            raise _not_readable(path, os.strerror(error.errno or 0)) from error


def _segments(extracts: Iterable[Extract], targets: Iterable[Range]) -> Iterator[_Segment]:
    """Yield the segments of the ranges that the extracts fill."""
    ranges = iter(targets)
    start = left = 0
    for file, first, length in extracts:
        offset = first
        while offset < first + length:
            if not left:
                start, left = next(ranges)
            taken = min(left, first + length - offset)
            yield _Segment(start, taken, file, offset)
            start, left, offset = start + taken, left - taken, offset + taken


def _check_digest(file: BinaryIO, size: int, sha256: str) -> None:
    digest = hashlib.sha256()
    for piece in read_pieces(file, 0, size):
        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise WireError("the patches do not make the file with the SHA-256 in its manifest")


def _write(file: BinaryIO, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(file.fileno(), data, offset)
        data, offset = data[count:], offset + count


def _not_readable(path: str | Path | int, reason: str) -> StateError:
    name = "a scratch file" if isinstance(path, int) else path
    return StateError(f"{name} cannot be read: {reason}", transient=True)
