"""Where objects of a store become files of this machine."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from agent.domain.manifest import Compression


class Pieces(Protocol):
    """An object's bytes, on their way."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Landing(Protocol):
    """Where objects become files."""

    def folder(self, size: int) -> AbstractAsyncContextManager[Path]:
        """Make a folder for `size` bytes, gone when the block ends. Raises StagingFull, StateError."""
        ...

    async def land(
        self, pieces: Pieces, path: Path, *, compression: Compression, stored_size: int, raw_size: int, sha256: str
    ) -> None:
        """Write an object's raw bytes to `path`. Raises WireError, transient where it may be on its way there yet."""
        ...

    async def sweep(self) -> None:
        """Remove what a process that was killed left."""
        ...
