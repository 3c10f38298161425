"""Ingest one upload into Akosha: its memories.json or, if that is not enough, its databases.

The contents of the bucket are not trusted. Objects are downloaded into a temporary folder, checked, read and deleted.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path

from agent.application.ingest.turns import Turn
from agent.application.memories.push import MemoryPush
from agent.application.sync.bucket_uploads import manifest_bytes
from agent.application.sync.download import Downloader, DownloadError, disk_bytes
from agent.application.sync.stall import limit_stalls
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.delivery_state import Target
from agent.domain.errors import StoreError, WireError
from agent.domain.manifest import Manifest
from agent.domain.memories import Memory, RowState, Tally
from agent.domain.upload_parts import ObjectRecord, Part
from agent.ports import Capabilities, MemoriesFile, MemoryReader, MemorySource, ObjectStore, Patcher
from agent.ports.unpacking import Unpacker

MAX_MEMORIES_BYTES = 8 * 2**30
MAX_DATABASE_BYTES = 64 * 2**30

_OTHER_WRITER = "is another program writing to this bucket?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Maximum size of one database, or memories.json, of an upload: rows, and uncompressed bytes."""

    rows: int = 5_000_000
    raw_bytes: int = MAX_DATABASE_BYTES

    def check(self, source: str, raw_bytes: int, rows: int) -> None:
        """Raise WireError if the numbers in the manifest exceed a limit."""
        if raw_bytes > self.raw_bytes:
            raise WireError(f"{source} has {raw_bytes:,} bytes uncompressed: the limit is {self.raw_bytes:,}")
        if rows > self.rows:
            raise self.too_many(source, rows)

    def too_many(self, source: str, rows: int) -> WireError:
        """Return the error for too many rows."""
        return WireError(f"{source} has {rows:,} rows or more: the limit is {self.rows:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadIngester:
    """Ingests uploads of one bucket into one Akosha. `endpoint` and `bucket` identify the two in the ledger.

    `zone` returns a time zone by its name; it may read files, and raises WireError if the zone is unknown. An operation
    fails after `standstill_seconds` without progress.
    """

    store: ObjectStore
    unpacker: Unpacker
    patcher: Patcher
    push: MemoryPush
    reader: MemoryReader
    memories_file: MemoriesFile
    zone: Callable[[str], tzinfo]
    endpoint: str
    bucket: str
    standstill_seconds: float
    limits: Limits = field(default_factory=Limits)

    def target(self, system_id: str) -> Target:
        """Return the target of this system in the memory ledger."""
        return Target("react", self.endpoint, self.bucket, system_id)

    async def manifest(self, system_id: str, upload: str) -> Manifest | None:
        """Return an upload's manifest, None if it was deleted. Raises StoreError, WireError if it is invalid."""
        key = naming.manifest_key(system_id, upload)
        async with self._stall_limit() as record_progress:
            data = await manifest_bytes(self.store, key, record_progress)
        if data is None:
            return None
        manifest = Manifest.decode(data)
        if (manifest.system_id, manifest.upload_id) != (system_id, upload):
            raise WireError(f"{key} is the manifest of {manifest.upload_id}", hint=_OTHER_WRITER)
        return manifest

    async def connect(self, system_id: str) -> tuple[Capabilities, frozenset[str]]:
        """Connect to Akosha. Return its capabilities, and the databases of the system to offer again.

        These have memories that an Akosha of another version, or with other tools, did not take. Raises SinkError.
        """
        async with self._stall_limit():
            capabilities = await self.push.sink.connect()
        version = f"{capabilities.version}, {self.push.missing_embedding} for embeddings"
        return capabilities, await self.push.ledger.update_version(self.target(system_id), version)

    async def memories(self, manifest: Manifest, capabilities: Capabilities, turn: Turn) -> Tally:
        """Push the memories in the upload's memories.json. Raises WireError, StoreError, SinkError, StateError."""
        memories = manifest.memories
        if memories is None or not memories.count:
            return Tally()
        if (size := max(memories.raw_size, memories.stored_size)) > MAX_MEMORIES_BYTES:
            raise WireError(f"{memories.key} has {size:,} bytes: the limit is {MAX_MEMORIES_BYTES:,}")
        self.limits.check(memories.key, memories.raw_size, memories.count)
        async with self.unpacker.folder(memories.raw_size) as folder:
            path = folder / naming.MEMORIES_NAME
            await self._download(memories, path, turn)
            source = self.memories_file.open(path, manifest.system_id)
            return await self._push(manifest, capabilities, source, turn, naming.MEMORIES_NAME)

    async def database(self, manifest: Manifest, database: str, capabilities: Capabilities, turn: Turn) -> Tally:
        """Push the memories in a database of the upload. Raises as `memories` does; SnapshotError if unreadable."""
        parts = manifest.of(database)
        if main_name(database) not in {part.name for part in parts}:
            raise WireError(f"{manifest.upload_id} has memories of {database}, but not the database itself")
        size = sum(part.raw_size for part in parts)
        needed = sum(disk_bytes(part) for part in parts)
        states = (layer.file_size for part in parts for layer in part.layers)
        if (largest := max(size, sum(part.stored_size for part in parts), *states)) > MAX_DATABASE_BYTES:
            raise WireError(
                f"{database} in {manifest.upload_id} has {largest:,} bytes: the limit is {MAX_DATABASE_BYTES:,}"
            )
        # Not its rows: the manifest counts those of all tables. Rows that are read are counted by `_push`.
        self.limits.check(f"{database} in {manifest.upload_id}", size, 0)
        async with self.unpacker.folder(needed) as folder:
            for part in parts:
                await self._download(part, folder / part.name, turn)
            zone = await asyncio.to_thread(self.zone, manifest.time_zone)
            target, main_sha256 = self.target(manifest.system_id), manifest.digests([database])[main_name(database)]
            async with self.reader.open(folder / main_name(database), database, zone=zone) as source:
                difference = await self.push.compare(target, database, source, main_sha256)
                if difference is not None and difference.rows > self.limits.rows:
                    raise self.limits.too_many(f"{database} in {manifest.upload_id}", difference.rows)
                tally = await self._push(manifest, capabilities, source, turn, database)
                if difference is not None:
                    await self.push.record_rows(target, database, source)
                return tally

    async def _download(self, recorded: Part | ObjectRecord, path: Path, turn: Turn) -> None:
        """Download a file, and count it towards the turn. Raises WireError if it is not as the manifest describes."""
        downloader = Downloader(
            store=self.store, unpacker=self.unpacker, patcher=self.patcher, stall_limit=self._stall_limit
        )
        try:
            await downloader.download(recorded, path)
        except DownloadError as failed:
            if failed.is_missing:
                raise WireError(f"{failed.key} is missing, but the manifest lists it", transient=True) from failed
            raise failed.error from failed
        async with self._stall_limit() as record_progress:
            turn.spend(raw_bytes=recorded.raw_size)
            await turn.pause(record_progress, self._pause_seconds)

    async def _push(
        self, manifest: Manifest, capabilities: Capabilities, source: MemorySource, turn: Turn, name: str
    ) -> Tally:
        async with self._stall_limit() as record_progress:

            async def after_page(rows: int) -> None:
                if rows > self.limits.rows:
                    raise self.limits.too_many(f"{name} in {manifest.upload_id}", rows)
                await turn.pause(record_progress, self._pause_seconds)

            in_turns = _InTurns(source, turn, after_page)
            return await self.push.push(
                self.target(manifest.system_id), capabilities, in_turns, lambda _count: record_progress()
            )

    @property
    def _pause_seconds(self) -> float:
        return self.standstill_seconds / 4

    @asynccontextmanager
    async def _stall_limit(self) -> AsyncIterator[Callable[[], None]]:
        try:
            async with limit_stalls(self.standstill_seconds) as record_progress:
                yield record_progress
        except TimeoutError as error:
            raise StoreError(
                f"no progress for {self.standstill_seconds:g} s",
                hint="akosha_upload_timeout_seconds sets the limit",
                transient=True,
            ) from error


@dataclass(frozen=True, slots=True)
class _InTurns:
    """A MemorySource that counts its rows towards the turn, and calls `after_page` with the rows so far."""

    source: MemorySource
    turn: Turn
    after_page: Callable[[int], Awaitable[None]]

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        rows = 0
        async with aclosing(self.source.pages()) as pages:
            async for page in pages:
                rows += len(page)
                self.turn.spend(rows=len(page))
                if page:
                    yield page
                await self.after_page(rows)

    def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        return self.source.read(wanted)
