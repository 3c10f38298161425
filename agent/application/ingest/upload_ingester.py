"""One upload, taken from the bucket into Akosha: its memories, or, where those are not enough, its databases.

Whatever is in the bucket was written by others. Nothing of it is believed before it was checked, and nothing of it is
kept: it is downloaded into a folder of our own, read, and gone.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path

from agent.application.ingest.turns import Turn
from agent.application.memories.push import MemoryPush
from agent.application.sync.bucket_uploads import manifest_bytes
from agent.application.sync.stall import limit_stalls
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.delivery_state import Target
from agent.domain.errors import NoSuchObject, StoreError, WireError
from agent.domain.manifest import Compression, Manifest, MemoriesPart, Part
from agent.domain.memories import Memory, RowState, Tally
from agent.ports import Capabilities, MemoriesFile, MemoryReader, MemorySource, ObjectStore
from agent.ports.unpacking import Unpacker

MAX_MEMORIES_BYTES = 8 * 2**30
MAX_DATABASE_BYTES = 64 * 2**30

_ELSEWHERE = "is another program writing there?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a database, or the memories.json, of an upload may have: rows, and bytes unpacked."""

    rows: int = 5_000_000
    raw_bytes: int = 8 * 2**30

    def check(self, what: str, raw_bytes: int, rows: int) -> None:
        """Raise WireError where the manifest already says that it is too much."""
        if raw_bytes > self.raw_bytes:
            raise WireError(
                f"{what} has {raw_bytes:,} bytes unpacked: more than the {self.raw_bytes:,} that are taken of a system"
            )
        if rows > self.rows:
            raise self.too_many(what, rows)

    def too_many(self, what: str, rows: int) -> WireError:
        """Return the error for rows that are too many."""
        return WireError(f"{what} has {rows:,} rows or more: more than the {self.rows:,} that are taken of a system")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadIngester:
    """Takes what one bucket has into one Akosha. `endpoint` and `bucket` name the two in the ledger.

    `zone` knows a time zone by its name; it may read files, and raises WireError for one that it does not know. Nothing
    may make no progress for longer than `standstill_seconds`.
    """

    store: ObjectStore
    unpacker: Unpacker
    push: MemoryPush
    reader: MemoryReader
    memories_file: MemoriesFile
    zone: Callable[[str], tzinfo]
    endpoint: str
    bucket: str
    standstill_seconds: float
    limits: Limits = field(default_factory=Limits)

    def target(self, system_id: str) -> Target:
        """Return what the memory ledger calls this system's part of Akosha."""
        return Target("react", self.endpoint, self.bucket, system_id)

    async def manifest(self, system_id: str, upload: str) -> Manifest | None:
        """Return an upload's manifest, None where it is gone. Raises StoreError; WireError for what it must not be."""
        key = naming.manifest_key(system_id, upload)
        async with self._moving() as moved:
            data = await manifest_bytes(self.store, key, moved)
        if data is None:
            return None
        manifest = Manifest.decode(data)
        if (manifest.system_id, manifest.upload_id) != (system_id, upload):
            raise WireError(f"{key} is the manifest of {manifest.upload_id}", hint=_ELSEWHERE)
        return manifest

    async def meet(self, system_id: str) -> tuple[Capabilities, frozenset[str]]:
        """Return what Akosha takes, and the databases of the system of which it may take now what it did not before.

        Raises SinkError.
        """
        async with self._moving():
            capabilities = await self.push.sink.connect()
        version = f"{capabilities.version}, {self.push.missing_embedding} for embeddings"
        return capabilities, await self.push.ledger.update_version(self.target(system_id), version)

    async def memories(self, manifest: Manifest, capabilities: Capabilities, turn: Turn) -> Tally:
        """Push what is in the upload's memories.json. Raises WireError, StoreError, SinkError, StateError."""
        memories = manifest.memories
        if memories is None or not memories.count:
            return Tally()
        if memories.size > MAX_MEMORIES_BYTES:
            raise WireError(f"{memories.key} has {memories.size} bytes, which is more than is taken")
        self.limits.check(memories.key, memories.size, memories.count)
        async with self.unpacker.folder(memories.size) as folder:
            path = folder / naming.MEMORIES_NAME
            await self._fetch(memories, path, "none", memories.size, turn)
            source = self.memories_file.open(path, manifest.system_id)
            return await self._push(manifest, capabilities, source, turn, naming.MEMORIES_NAME)

    async def database(self, manifest: Manifest, database: str, capabilities: Capabilities, turn: Turn) -> Tally:
        """Push what is in a database of the upload. Raises as `memories` does; SnapshotError where it is unreadable."""
        parts = manifest.of(database)
        if main_name(database) not in {part.name for part in parts}:
            raise WireError(f"{manifest.upload_id} has memories of {database}, and lacks the database itself")
        size = sum(part.raw_size for part in parts)
        if max(size, sum(part.stored_size for part in parts)) > MAX_DATABASE_BYTES:
            raise WireError(f"{database} in {manifest.upload_id} has {size} bytes, which is more than is taken")
        self.limits.check(f"{database} in {manifest.upload_id}", size, sum(manifest.rows.get(database, {}).values()))
        async with self.unpacker.folder(size) as folder:
            for part in parts:
                await self._fetch(part, folder / part.name, part.compression, part.raw_size, turn)
            zone = await asyncio.to_thread(self.zone, manifest.time_zone)
            async with self.reader.open(folder / main_name(database), database, zone=zone) as source:
                return await self._push(manifest, capabilities, source, turn, database)

    async def _fetch(
        self, memories: Part | MemoriesPart, path: Path, compression: Compression, raw_size: int, turn: Turn
    ) -> None:
        stored_size = memories.stored_size if isinstance(memories, Part) else memories.size
        try:
            async with self._moving() as moved, aclosing(self.store.get(memories.key)) as pieces:
                await self.unpacker.unpack(
                    _watched(pieces, moved),
                    path,
                    compression=compression,
                    stored_size=stored_size,
                    raw_size=raw_size,
                    sha256=memories.sha256,
                )
                turn.spend(raw_bytes=raw_size)
                await turn.pause(moved, self._pause_seconds)
        except NoSuchObject as error:
            raise WireError(f"{memories.key} is not there, and its manifest tells of it", transient=True) from error

    async def _push(
        self, manifest: Manifest, capabilities: Capabilities, source: MemorySource, turn: Turn, name: str
    ) -> Tally:
        async with self._moving() as moved:

            async def between(rows: int) -> None:
                if rows > self.limits.rows:
                    raise self.limits.too_many(f"{name} in {manifest.upload_id}", rows)
                await turn.pause(moved, self._pause_seconds)

            in_turns = _InTurns(source, turn, between)
            return await self.push.push(self.target(manifest.system_id), capabilities, in_turns, lambda _count: moved())

    @property
    def _pause_seconds(self) -> float:
        return self.standstill_seconds / 4

    @asynccontextmanager
    async def _moving(self) -> AsyncIterator[Callable[[], None]]:
        try:
            async with limit_stalls(self.standstill_seconds) as moved:
                yield moved
        except TimeoutError as error:
            raise StoreError(
                f"no progress for {self.standstill_seconds:g} s",
                hint="is the network very slow? akosha_upload_timeout_seconds sets how long",
                transient=True,
            ) from error


@dataclass(frozen=True, slots=True)
class _InTurns:
    """A MemorySource that counts the rows it gives; after each page it may have to wait for the next turn."""

    source: MemorySource
    turn: Turn
    between: Callable[[int], Awaitable[None]]

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        rows = 0
        async with aclosing(self.source.pages()) as pages:
            async for page in pages:
                rows += len(page)
                self.turn.spend(rows=len(page))
                if page:
                    yield page
                await self.between(rows)

    def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        return self.source.read(wanted)


async def _watched(pieces: AsyncIterable[bytes], moved: Callable[[], None]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        moved()
        yield piece
