"""The extra objects that Akosha's own IngestionWorker looks for: "directories", and memories.json under `//`.

They come when the upload is whole: some stores refuse such keys, and some lose sight of others over them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog

from agent.application.sync.stall import StallMonitor, StallTimeout, limit_stalls
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NamingError, NoSuchObject, StoreError
from agent.domain.manifest import Manifest, MemoriesPart, manifest_metadata
from agent.domain.upload_plan import part_bytes
from agent.ports import ObjectStore, Progress, StoredObject

_HINT = "this store does not bear such keys: set akosha_ingestion_markers to false"

_log = structlog.get_logger()


class IngestionMarkers:
    """Writes the markers of whole uploads. What does not work is logged: an upload is whole without them."""

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
        """Write the markers of this upload; where one is refused none follows, for all are needed."""
        try:
            await self._moving(self._write, manifest)
        except (StoreError, NamingError, TimeoutError) as error:
            why = str(error) or f"no progress for {self._standstill_seconds:g} s"
            _log.warning("ingestion_markers_refused", upload_id=manifest.upload_id, reason=why)
        try:
            await self._moving(self._make_sure_of, manifest)
        except (StoreError, TimeoutError) as error:
            _log.error("ingestion_markers_harm", upload_id=manifest.upload_id, reason=str(error), hint=_HINT)

    async def _moving(self, work: Callable[[Manifest, Progress], Awaitable[None]], manifest: Manifest) -> None:
        """Do it while it makes progress; once more where a network change has interrupted it."""
        try:
            async with limit_stalls(self._standstill_seconds, self._stall_monitor) as moved:
                await work(manifest, lambda _: moved())
        except StallTimeout:
            async with limit_stalls(self._standstill_seconds, self._stall_monitor) as moved:
                await work(manifest, lambda _: moved())

    async def _write(self, manifest: Manifest, moved: Progress) -> None:
        uploads = naming.uploads_prefix(manifest.system_id)
        upload = f"{uploads}{manifest.upload_id}/"
        await self._put(uploads.removesuffix("uploads/"), _once(b""), {}, 0, moved)
        if manifest.memories is not None:
            await self._repeat(manifest.memories, f"{upload}/{naming.MEMORIES_NAME}", moved)
        await self._put(upload, _once(b""), {}, 0, moved)  # it is found by this one: all else is there by then

    async def _make_sure_of(self, manifest: Manifest, moved: Progress) -> None:
        """See that the manifest is still there. rclone says that it is not, until something is put beside it."""
        try:
            await self._store.head(manifest.key)
        except NoSuchObject:
            _log.warning("ingestion_markers_harm", upload_id=manifest.upload_id, hint=_HINT)
            data = manifest.encode()
            await self._put(manifest.key, _once(data), manifest_metadata(data), len(data), moved)

    async def _repeat(self, memories: MemoriesPart, key: str, moved: Progress) -> None:
        expected = StoredObject(key, memories.size, memories.metadata)
        try:
            await self._store.copy(memories.key, key, expected=expected, progress=moved)
        except CopyUnsupported:
            async with aclosing(self._store.get(memories.key)) as body:
                await self._put(key, body, memories.metadata, memories.size, moved)

    async def _put(
        self, key: str, body: AsyncIterator[bytes], metadata: Mapping[str, str], size: int, moved: Progress
    ) -> None:
        part = part_bytes(size, self._chunk_bytes)
        await self._store.put(key, body, metadata=metadata, part_bytes=part, progress=moved)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
