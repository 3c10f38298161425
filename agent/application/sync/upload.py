"""Carrying out one upload: every file sent, copied or carried, then the manifest. All of it or no upload.

What the store answered to have is looked for before the manifest is put, and the manifest after it.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from agent.application.sync.bucket_uploads import BucketUploads
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NoSuchObject, StoreError
from agent.domain.manifest import Manifest, MemoriesPart, Origin, Part, manifest_metadata, relocate
from agent.domain.upload_plan import Reuse, Send, part_bytes
from agent.ports import Clock, Compressor, MemoriesDraft, ObjectStore, Reporter, Snapshot, StoredObject, is_changed

CONFIRM_SECONDS = 10.0
"""How long an object may take to appear before it counts as lost."""

ASK_AGAIN_SECONDS = 0.5

_COPIED = "is the state directory of this agent in use a second time, on a copy of this machine?"
_HINT = "the upload is tried again; if this repeats, check the store and any proxy or cache in front of it"


class Confirmation:
    """Confirms that a store has what it answered to have stored. `moved` is called at every answer of the store.

    A store, a cache or a proxy may answer 200 to a PUT and keep nothing, or other bytes. One listing shows all objects
    of an upload; an object that the listing lacks, or shows otherwise, is asked for by HEAD for a while: a listing may
    lag.
    """

    def __init__(self, store: ObjectStore, clock: Clock, moved: Callable[[], None]) -> None:
        self._store, self._clock, self._moved = store, clock, moved

    async def objects(
        self, prefix: str, placed: Iterable[StoredObject], *, absent: str = ""
    ) -> dict[str, StoredObject]:
        """Return the objects under `prefix` as the store has them, by key, once each of `placed` is confirmed.

        Raises StoreError (transient) for one that is lost, or is not what was put, and where there is an object under
        the key `absent`: somebody else has put it there meanwhile.
        """
        listed: dict[str, StoredObject] = {}
        async for item in self._store.list(prefix):
            listed[item.key] = item
            self._moved()
        if absent in listed:
            raise StoreError(
                f"another agent has put {absent!r} into {self._store.location} meanwhile", hint=_COPIED, transient=True
            )
        confirmed = {}
        for put in placed:
            found = listed.get(put.key)
            if found is None or _difference(put, found):
                found = await self.object(put)
            confirmed[put.key] = replace(found, etag=found.etag or put.etag)
        return confirmed

    async def object(self, placed: StoredObject) -> StoredObject:
        """Return one object as a HEAD shows it. Raises StoreError (transient) where it is lost or not what was put."""
        started = self._clock.monotonic()
        while True:
            try:
                found = await self._store.head(placed.key)
            except NoSuchObject:
                wrong = "it is not there"
            else:
                wrong = _difference(placed, found)
                if not wrong:
                    return found
            self._moved()
            if self._clock.monotonic() - started >= CONFIRM_SECONDS:
                raise StoreError(
                    f"{self._store.location} answered that it has stored {placed.key!r}, but {wrong}",
                    hint=_HINT,
                    transient=True,
                )
            await self._clock.sleep(ASK_AGAIN_SECONDS)


def _difference(placed: StoredObject, found: StoredObject) -> str:
    """Return how an object differs from what was put, "" where it does not.

    ETags of another length are of another form, which some stores use in listings: they show nothing.
    """
    if found.size != placed.size:
        return f"it has {found.size} bytes, not {placed.size}"
    if len(found.etag) == len(placed.etag) and is_changed(placed.etag, found.etag):
        return f"its ETag is {found.etag}, not {placed.etag}"
    return ""


_log = structlog.get_logger()


class SourceObjectMissing(NoSuchObject):
    """An object of the last upload is no longer what was put there: `database` must be sent whole."""

    def __init__(self, part: Part) -> None:
        super().__init__(f"{part.key} is no longer in the bucket as it was put there", transient=True)
        self.hint = "it will be sent again"
        self.database = part.database


@dataclass(slots=True)
class Upload:
    """One upload on its way into the bucket. `moved` is called for every sign of progress.

    `resumed`: an attempt before this one may have put some of it. `bytes_sent` counts stored bytes that went from here.
    `stored_at` is the time of its newest object, by the store's clock, where a listing has it, once it is `confirmed`.
    """

    upload_id: str
    system_id: str
    store: ObjectStore
    uploads: BucketUploads
    compressor: Compressor
    chunk_bytes: int
    staged: Mapping[str, Snapshot]
    report: Reporter
    moved: Callable[[], None]
    resumed: bool
    confirmation: Confirmation
    bytes_sent: int = field(default=0, init=False)
    stored_at: datetime | None = field(default=None, init=False)
    _placed: dict[str, StoredObject] = field(default_factory=dict, init=False)

    async def put_part(self, step: Send | Reuse) -> Part:
        """Bring one file into the upload and return it as the manifest will name it. Raises StoreError, Gone."""
        if isinstance(step, Send):
            return await self._send(step)
        carried_from = None
        if step.carried:
            carried_from = step.part.carried_from or naming.upload_of(step.part.key)
        origin: Origin = "carried" if step.carried else "copied"
        part = relocate(
            step.part, system_id=self.system_id, upload=self.upload_id, origin=origin, carried_from=carried_from
        )
        snapshot = self.staged.get(part.database)
        if snapshot is not None:
            part = replace(
                part,
                verified=snapshot.verified,
                unverified_reason=snapshot.unverified_reason,
                storage_version=snapshot.storage_version,
            )
        expected = StoredObject(part.key, part.stored_size, part.metadata, etag=step.part.etag)
        try:
            copy = await self.store.copy(step.part.key, part.key, expected=expected, progress=lambda _: self.moved())
        except (CopyUnsupported, NoSuchObject) as error:
            return await self._without_copy(step, part, error)
        self.moved()
        self._placed[part.key] = copy
        return part

    async def put_memories(self, part: MemoriesPart, draft: MemoriesDraft) -> None:
        """Bring memories.json into the upload."""
        stored = await self._already_there(part.key, part.metadata)
        if stored is None:
            async with aclosing(draft.stream()) as body:
                stored = await self._put(part.key, body, part.metadata, raw_size=part.size)
        self._placed[part.key] = stored

    async def confirmed(
        self, parts: Iterable[Part], memories: MemoriesPart | None
    ) -> tuple[tuple[Part, ...], MemoriesPart | None]:
        """Return parts and memories with their ETags, once the store shows that it has them all.

        Raises StoreError (transient) for an object that the store answered to have stored and does not have.
        """
        prefix = f"{naming.uploads_prefix(self.system_id)}{self.upload_id}/"
        manifest = naming.manifest_key(self.system_id, self.upload_id)
        found = await self.confirmation.objects(prefix, self._placed.values(), absent=manifest)
        self.stored_at = max((item.modified for item in found.values() if item.modified), default=None)
        tagged = tuple(replace(part, etag=found[part.key].etag) for part in parts)
        return tagged, replace(memories, etag=found[memories.key].etag) if memories else None

    async def put_manifest(self, manifest: Manifest) -> None:
        """Make the upload exist, and see that it does; where the answer was lost, that is all there is to do."""
        data = manifest.encode()
        try:
            stored = await self._put(manifest.key, _once(data), manifest_metadata(data), raw_size=len(data))
            await self.confirmation.object(stored)
        except StoreError as error:
            if not error.transient:
                raise
            with suppress(StoreError):
                if await self.uploads.manifest(manifest.upload_id) == manifest:
                    return
            raise

    async def _send(self, step: Send) -> Part:
        snapshot = self.staged[step.database]
        name = naming.object_name(step.file.name)
        part = Part(
            database=step.database,
            name=step.file.name,
            key=naming.object_key(self.system_id, self.upload_id, name),
            raw_size=step.file.size,
            stored_size=0,
            sha256=step.file.sha256,
            compression=self.compressor.compression,
            origin="sent",
            verified=snapshot.verified,
            unverified_reason=snapshot.unverified_reason,
            header_iteration=snapshot.header_iteration,
            storage_version=snapshot.storage_version,
        )
        stored = await self._already_there(part.key, part.metadata)
        if stored is None:
            async with aclosing(self.compressor.stream(snapshot.folder / step.file.name)) as body:
                stored = await self._put(part.key, body, part.metadata, raw_size=part.raw_size)
        self._placed[part.key] = stored
        return replace(part, stored_size=stored.size)

    async def _without_copy(self, step: Reuse, part: Part, error: CopyUnsupported | NoSuchObject) -> Part:
        """Send from the snapshot where there is one; else have the bytes come and go through here."""
        snapshot = self.staged.get(part.database)
        if snapshot is not None:
            raw = next(file for file in snapshot.files if file.name == part.name)
            return await self._send(Send(part.database, raw))
        if isinstance(error, NoSuchObject) or not await self.uploads.holds(step.part, self.moved):
            raise SourceObjectMissing(step.part) from error
        _log.info("copy_fallback", upload_id=self.upload_id, key=step.part.key, reason=error.message)
        async with aclosing(self.store.get(step.part.key)) as body:
            stored = await self._put(part.key, body, part.metadata, raw_size=part.stored_size)
        if stored.size != part.stored_size:
            raise SourceObjectMissing(step.part) from error
        self._placed[part.key] = stored
        return part

    async def _already_there(self, key: str, metadata: Mapping[str, str]) -> StoredObject | None:
        """Return the object where an attempt before this one has put these very bytes already."""
        if not self.resumed:
            return None
        try:
            stored = await self.store.head(key)
        except NoSuchObject:
            return None
        return stored if stored.metadata == metadata else None

    async def _put(
        self, key: str, body: AsyncIterator[bytes], metadata: Mapping[str, str], *, raw_size: int
    ) -> StoredObject:
        def progress(count: int) -> None:
            self.report.moved(count)
            self.moved()

        size = part_bytes(raw_size, self.chunk_bytes)
        stored = await self.store.put(key, body, metadata=metadata, part_bytes=size, progress=progress)
        self.bytes_sent += stored.size
        return stored


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
