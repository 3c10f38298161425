"""Downloads a file of an upload: one object, or a base and the patches that are applied to it."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path

from agent.domain.errors import NoSuchObject, PatchError, UnreadableObject, WireError
from agent.domain.upload_parts import ObjectRecord, Part
from agent.ports import ObjectStore, Patcher, Progress, ignore_progress
from agent.ports.unpacking import Unpacker

StallLimit = Callable[[], AbstractAsyncContextManager[Callable[[], None]]]
"""Starts a time limit for one download. The function that it returns records progress."""


UNREADABLE = "cannot be read: its disk reports an error"
"""The problem of an UnreadableObject."""


class DownloadError(Exception):
    """The object `key` is not the one that its manifest describes.

    `problem` completes a sentence about the object. `error` is a NoSuchObject if it is missing.
    """

    def __init__(self, key: str, path: Path, error: NoSuchObject | UnreadableObject | WireError) -> None:
        super().__init__(key, error)
        self.key, self.error = key, error
        self.is_missing = isinstance(error, NoSuchObject)
        problem = UNREADABLE if isinstance(error, UnreadableObject) else error.message.removeprefix(f"{path.name} ")
        self.problem = "is missing" if self.is_missing else problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloader:
    """Downloads files from one store, and checks sizes and digests. A download needs `disk_bytes` of disk space."""

    store: ObjectStore
    unpacker: Unpacker
    patcher: Patcher
    stall_limit: StallLimit

    async def download(self, recorded: Part | ObjectRecord, path: Path, progress: Progress = ignore_progress) -> None:
        """Write a file of an upload, or the uncompressed content of an object, to the new file `path`.

        `progress` gets the number of bytes of each downloaded piece. Raises DownloadError; StoreError if the store does
        not answer; StagingFull, StateError for the disk.
        """
        if isinstance(recorded, ObjectRecord):
            await self._object(recorded, path, progress)
        elif recorded.layers:
            await self._layers(recorded, path, progress)
        else:
            await self._object(recorded.objects[0], path, progress)

    async def assemble(self, part: Part, layers: Sequence[Path], path: Path) -> None:
        """Make a file of an upload, the new file `path`, from its downloaded layers. Raises as `download` does."""
        sizes = [layer.file_size for layer in part.layers[1:]]
        try:
            await self.patcher.apply(layers[0], layers[1:], path, sizes=sizes, sha256=part.sha256)
        except PatchError as error:
            raise DownloadError(part.layers[error.number].key, layers[error.number], error) from error
        except WireError as error:  # it is not known which layer is wrong: the last one makes the file
            raise DownloadError(part.layers[-1].key, path, error) from error

    async def _layers(self, part: Part, path: Path, progress: Progress) -> None:
        # The file's name may be as long as names can be. One file is downloaded into a folder at a time.
        paths = [path.with_name(f".layer-{number:02}") for number in range(len(part.layers))]
        try:
            for layer, layer_path in zip(part.layers, paths, strict=True):
                await self._object(layer, layer_path, progress)
            await self.assemble(part, paths, path)
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, paths))

    async def _object(self, recorded: ObjectRecord, path: Path, progress: Progress) -> None:
        try:
            async with self.stall_limit() as record_progress, aclosing(self.store.get(recorded.key)) as pieces:

                def count(size: int) -> None:
                    record_progress()
                    progress(size)

                await self.unpacker.unpack(
                    _counted(pieces, count),
                    path,
                    compression=recorded.compression,
                    stored_size=recorded.stored_size,
                    raw_size=recorded.raw_size,
                    sha256=recorded.sha256,
                )
        except (NoSuchObject, UnreadableObject, WireError) as error:
            raise DownloadError(recorded.key, path, error) from error


def disk_bytes(part: Part) -> int:
    """Return the disk space in bytes that the download of a file takes, with its layers and the states in between."""
    between = max((layer.file_size for layer in part.layers[1:-1]), default=0)
    return part.raw_size + sum(layer.raw_size for layer in part.layers) + 2 * between


async def _counted(pieces: AsyncIterable[bytes], count: Callable[[int], None]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        count(len(piece))
        yield piece


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
