"""The stages of an upload, each alone, with the agent's adapters: copy, hash, compress, put."""

import asyncio
import hashlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb.bracketed_copy import FileCopy
from agent.adapters.duckdb.source import Source
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.domain.databases import REFLECTIONS
from tests.bench.pipeline import PART_BYTES

Stage = Callable[[], Awaitable[object]]


class Stages:
    """Stages for the database in `data_dir`; they write into `folder`."""

    def __init__(self, data_dir: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._source, self._folder = Source(data_dir, REFLECTIONS), folder
        self._packed = folder / "packed.gz"

    async def prepare(self) -> Path:
        """Compress the file for `put`; return the path of the compressed file."""
        with self._packed.open("wb") as file:
            async for piece in GzipMembers().stream(self._main):
                file.write(piece)
        return self._packed

    def all(self) -> dict[str, Stage]:
        """Return the stages by name, in their order."""
        return {"copy": self.copy, "hash": self.hash, "compress": self.compress, "put": self.put}

    async def copy(self) -> None:
        """Copy the file as a snapshot does, without hashing."""
        with self._copier() as copy:
            await asyncio.to_thread(copy.run, None)

    async def hash(self) -> None:
        """Read the file and compute its SHA-256."""
        await asyncio.to_thread(_hash, self._main)

    async def compress(self) -> None:
        """Compress the file and discard the output."""
        async for _ in GzipMembers().stream(self._main):
            pass

    async def put(self) -> None:
        """Put the compressed file into a directory."""
        store = DirectoryStore(self._folder / "bucket")
        body: AsyncIterator[bytes] = Uncompressed().stream(self._packed)
        await store.put("packed", body, metadata={}, part_bytes=PART_BYTES, progress=lambda _: None)

    def clean(self) -> None:
        """Remove the output of the stages, except that of `prepare`."""
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    @property
    def _main(self) -> Path:
        return Path(self._source.files()[0].path or "")

    def _copier(self) -> FileCopy:
        staging = self._folder / "staging"
        staging.mkdir()
        return FileCopy(self._source.files()[0], staging, halt=threading.Event())


def _hash(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


async def timed(stage: Stage) -> float:
    """Return the seconds that a stage takes. Earlier writes are flushed first, so that they do not slow it down."""
    await asyncio.to_thread(os.sync)
    started = time.perf_counter()
    await stage()
    return time.perf_counter() - started
