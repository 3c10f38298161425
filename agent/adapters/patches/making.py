"""Make a patch, and apply it again to compare the result. Runs in the child; blocks."""

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.adapters.block_checksums import BLOCK_BYTES, BlockChecksums, Digests, ExpectedBlocks
from agent.adapters.patches.applying import State, placed, read_pieces
from agent.adapters.patches.container import PatchReader, Range, Step, encode_header, encode_step, total
from agent.adapters.patches.matching import plan
from agent.adapters.patches.zstd import compress, prefix_of


class DiffersError(Exception):
    """The patch that was made does not make the file."""


def make(
    reference: Path, file: Path, patch: Path, most_bytes: int, checksums: Sequence[int] | None = None
) -> Digests | None:
    """Write the new file `patch`, and return its digests.

    When it returns, a patch with these digests has been applied, and the result compared with `file`. Returns
    None once the patch is larger than `most_bytes`; then, and after an error, there is no file. Raises DiffersError,
    OSError; StateError, WireError if a file changes meanwhile; StagedCopyChanged if `file` has other `checksums`.
    """
    made: Digests | None = None
    with reference.open("rb", buffering=0) as old, file.open("rb", buffering=0) as new, fs.create(patch) as output:
        try:
            written = _written(old, new, output, most_bytes)
            if written is not None:
                _check(new, ExpectedBlocks(file.name, checksums))
            made = written
        finally:
            if made is None:
                patch.unlink()
    return made


def _written(old: FileIO, new: FileIO, output: BinaryIO, most_bytes: int) -> Digests | None:
    before, after = _state(old), _state(new)
    output.write(encode_header(before.size, after.size))
    for sources, targets, is_copy in plan(old, before.size, new, after.size):
        frame = [] if is_copy else _frame(before, sources, after, targets)
        output.write(encode_step(Step(sources, targets, sum(map(len, frame)))))
        output.writelines(frame)
        if output.tell() > most_bytes:
            return None
    output.flush()
    digests = Digests()
    for data in read_pieces(output, 0, output.tell()):
        digests.update(memoryview(data))
    _verify(output, before, new)  # after hashing: the bytes that were hashed are those that make the file
    return digests


def _frame(before: State, sources: Sequence[Range], after: State, targets: Sequence[Range]) -> list[bytes]:
    prefix = prefix_of(before.gather(sources))
    return list(compress(prefix, after.read(targets), total(targets)))


def _check(file: FileIO, expected: ExpectedBlocks) -> None:
    """Raise StagedCopyChanged if a bit has flipped since the file was hashed: the patch makes the flipped bit, too."""
    size = os.fstat(file.fileno()).st_size
    expected.check_size(size)
    for offset in range(0, size, BLOCK_BYTES):
        expected.check(offset, BlockChecksums(b"".join(read_pieces(file, offset, min(BLOCK_BYTES, size - offset)))))


def _state(file: FileIO) -> State:
    return State.of(file, os.fstat(file.fileno()).st_size)


def _verify(output: BinaryIO, before: State, new: FileIO) -> None:
    """Apply the patch, and compare the result with the file. Raises DiffersError."""
    output.seek(0)
    for step, pieces in before.contents(PatchReader(output)):
        for offset, piece in placed(pieces, step.targets):
            # Not the views: comparing them takes ten times as long.
            if b"".join(read_pieces(new, offset, len(piece))) != bytes(piece):
                raise DiffersError
