"""Patches, which make a file from an earlier state of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WrittenPatch:
    """The size in bytes, the SHA-256 and the checksums (see `RawFile`) of a finished patch."""

    size: int
    sha256: str
    checksums: tuple[int, ...]


class Patcher(Protocol):
    """Makes and applies patches. The same files give the same patch."""

    async def make(
        self, reference: Path, file: Path, patch: Path, *, most_bytes: int, checksums: Sequence[int] | None = None
    ) -> WrittenPatch | None:
        """Write to `patch` how `file` is made from `reference`. An earlier patch there is replaced.

        The patch has been applied, and its result compared with `file`, when this returns. `checksums`, if not None,
        are those of `file` (see `RawFile`), which it must still have then. Returns None, and leaves no file, if the
        patch would be larger than `most_bytes`, or if it could not be made (the process that makes it failed, the disk
        is full, a file changed): then the whole file is sent.
        """
        ...

    async def apply(
        self, reference: Path, patches: Sequence[Path], file: Path, *, sizes: Sequence[int], sha256: str
    ) -> None:
        """Create `file` from `reference` and at least one patch, the oldest first, and check its size and SHA-256.

        `sizes` are those of the files that the patches make, in bytes; the last is that of `file`. The files between
        `reference` and `file` are not made: a chain of patches costs little more than one. Uses a bounded amount of
        memory, and of disk three times the largest of `sizes`, whatever the patches say.

        Raises PatchError if a patch is not valid, is not one of the file before it, or makes another size; another
        WireError if the result has another SHA-256, or if the process that applies the patches crashes. Raises
        StagingFull, StateError (transient) for the disk, and if that process fails in another way (killed, too slow,
        without memory or threads): this says nothing about the patches. After an error or a cancellation there is no
        file, except one that existed before.
        """
        ...
