"""Turns objects of a store into files on this machine."""

from collections.abc import AsyncIterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from agent.domain.upload_parts import Compression


class Unpacker(Protocol):
    """Writes downloaded objects to files and checks their size and digest."""

    def folder(self, size: int) -> AbstractAsyncContextManager[Path]:
        """Create a folder for `size` bytes; it is removed when the block ends. Raises StagingFull, StateError."""
        ...

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
        """Write an object's raw bytes to a new file at `path`.

        Raises WireError if they are not the expected bytes: transient if the object may still be on its way there, as
        when a store is mirrored. Raises StagingFull, StateError for the disk.
        """
        ...

    async def sweep(self) -> None:
        """Remove the folders that a killed process left."""
        ...
