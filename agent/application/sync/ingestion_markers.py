"""The extra objects that Akosha's own IngestionWorker looks for: "directories", and memories.json under `//`.

They are written after the manifest, because some stores refuse such keys, and some hide other objects because of them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog

from agent.application.sync.stall import StallMonitor, StallTimeout, limit_stalls
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NamingError, NoSuchObject, StoreError
from agent.domain.manifest import Manifest, manifest_metadata
from agent.domain.upload_parts import MemoriesPart
from agent.domain.upload_plan import part_bytes
from agent.ports import ObjectStore, Progress, StoredObject

_HINT = "this store does not support such keys: set akosha_ingestion_markers to false"

_log = structlog.get_logger()


class IngestionMarkers:
    """Writes the markers of complete uploads. Errors are only logged: an upload is complete without its markers."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        chunk_bytes: int,
        standstill_seconds: float,
        stall_monitor: StallMonitor | None = None,
    ) -> None:
        self._store, self._chunk_bytes, self._standstill_seconds = store, chunk_bytes, standstill_seconds
        self._stall_monitor = stall_monitor

    async def write(self, manifest: Manifest) -> None:
        """Write the markers of this upload. If one is refused, stop: IngestionWorker needs all of them."""
        try:
            await self._limit_stalls(self._write, manifest)
        except (StoreError, NamingError, TimeoutError) as error:
            reason = str(error) or f"no progress for {self._standstill_seconds:g} s"
            _log.warning("ingestion_markers_refused", upload_id=manifest.upload_id, reason=reason)
        try:
            await self._limit_stalls(self._ensure_manifest, manifest)
        except (StoreError, TimeoutError) as error:
            _log.error("manifest_hidden", upload_id=manifest.upload_id, reason=str(error), hint=_HINT)

    async def _limit_stalls(self, work: Callable[[Manifest, Progress], Awaitable[None]], manifest: Manifest) -> None:
        """Run `work` with a stall limit; run it once more if a network change has interrupted it."""
        try:
            async with limit_stalls(self._standstill_seconds, self._stall_monitor) as progress:
                await work(manifest, lambda _: progress())
        except StallTimeout:
            async with limit_stalls(self._standstill_seconds, self._stall_monitor) as progress:
                await work(manifest, lambda _: progress())

    async def _write(self, manifest: Manifest, progress: Progress) -> None:
        uploads = naming.uploads_prefix(manifest.system_id)
        upload = f"{uploads}{manifest.upload_id}/"
        await self._put(uploads.removesuffix("uploads/"), _once(b""), {}, 0, progress)
        if manifest.memories is not None and manifest.memories.compression == "none":
            await self._copy_memories(manifest.memories, f"{upload}/{naming.MEMORIES_NAME}", progress)
        await self._put(upload, _once(b""), {}, 0, progress)  # last: IngestionWorker finds the upload by this one

    async def _ensure_manifest(self, manifest: Manifest, progress: Progress) -> None:
        """Put the manifest again if it is missing. rclone hides it after the markers, until another put next to it."""
        try:
            await self._store.head(manifest.key)
        except NoSuchObject:
            _log.warning("manifest_hidden", upload_id=manifest.upload_id, hint=_HINT)
            data = manifest.encode()
            await self._put(manifest.key, _once(data), manifest_metadata(data), len(data), progress)

    async def _copy_memories(self, memories: MemoriesPart, key: str, progress: Progress) -> None:
        expected = StoredObject(key, memories.stored_size, memories.metadata)
        try:
            await self._store.copy(memories.key, key, expected=expected, progress=progress)
        except CopyUnsupported:
            async with aclosing(self._store.get(memories.key)) as body:
                await self._put(key, body, memories.metadata, memories.stored_size, progress)

    async def _put(
        self, key: str, body: AsyncIterator[bytes], metadata: Mapping[str, str], size: int, progress: Progress
    ) -> None:
        part = part_bytes(size, self._chunk_bytes)
        await self._store.put(key, body, metadata=metadata, part_bytes=part, progress=progress)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
