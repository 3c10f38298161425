"""One upload: sends, copies or carries over every file, then puts the manifest. Without the manifest, no upload exists.

All objects are confirmed in the store before the manifest is put, then the manifest itself.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import structlog

from agent.application.sync.bucket_uploads import BucketUploads
from agent.application.sync.confirmation import ChangedObjectError, Confirmation, difference
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NoSuchObject, StoreError, UnreadableObject
from agent.domain.manifest import Manifest, manifest_metadata
from agent.domain.upload_parts import (
    PATCHES,
    Layer,
    MemoriesPart,
    ObjectRecord,
    Origin,
    Part,
    PartCompression,
    is_read_by_name,
    relocate,
)
from agent.domain.upload_plan import Patch, RawFile, Reuse, Send, part_bytes, patched_layers
from agent.ports import (
    Clock,
    Compressor,
    MemoriesDraft,
    ObjectStore,
    PutJournal,
    Reporter,
    Snapshot,
    StoredObject,
    ignore_progress,
)
from agent.ports.concurrency import gather_all
from agent.ports.methods import NoReporter

_log = structlog.get_logger()


class UploadNotContinued(StoreError):  # noqa: N818 - named for the condition
    """The upload cannot go on under the ID with which an earlier attempt began it: another ID is needed."""


class SourceObjectMissing(NoSuchObject):
    """An object of the last upload is missing or has changed: all of `database` must be sent."""

    def __init__(self, database: str, key: str) -> None:
        super().__init__(f"{key} is missing from the bucket, or has changed since it was uploaded", transient=True)
        self.hint = "the next attempt sends it again"
        self.database = database


class _RawProgress:
    """Reports the progress of a put, in compressed bytes, in the uncompressed bytes of the file."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._read = self._compressed = self._stored = self._reported = 0
        self._marks: deque[tuple[int, int]] = deque()

    def read(self, count: int) -> None:
        """Count uncompressed bytes of the next piece."""
        self._read += count

    async def watch(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the pieces, and remember where each ends."""
        async for piece in pieces:
            self._compressed += len(piece)
            self._marks.append((self._compressed, self._read))
            yield piece

    def sent(self, count: int) -> None:
        """Report the pieces of which the last byte was sent."""
        self._advance(count, self._report.moved)

    def kept(self, count: int) -> None:
        """Report the pieces of which the last byte is in the store from an earlier attempt."""
        self._advance(count, self._report.kept)

    def complete(self, raw_bytes: int, *, kept: bool) -> None:
        """Report all uncompressed bytes of the file as done. `kept`: an earlier attempt has sent it."""
        self._reach(raw_bytes, self._report.kept if kept else self._report.moved)

    def _advance(self, count: int, report: Callable[[int], None]) -> None:
        self._stored += count
        while self._marks and self._marks[0][0] <= self._stored:
            self._reach(self._marks.popleft()[1], report)

    def _reach(self, raw_bytes: int, report: Callable[[int], None]) -> None:
        if raw_bytes > self._reported:
            report(raw_bytes - self._reported)
            self._reported = raw_bytes


@dataclass(slots=True)
class Upload:
    """One upload in progress. `progress` is called whenever it makes progress; set it before each use.

    `staged`: the copies by database. They are sent before they are verified; `confirm` needs the results.
    `journal` returns the journal of the puts of a key.
    `resumed`: an earlier attempt may have put some of its objects. `manifest_sent`: also all of them and the manifest,
    which may still appear in the store, so no object may change. `manifest_damaged`: the store has changed the
    manifest, which is replaced. `sent` is called with the number of stored bytes that this machine has sent.
    `stored_at`: time of the newest object by the store's clock, set by `confirm` if the listing has it.
    """

    upload_id: str
    system_id: str
    store: ObjectStore
    uploads: BucketUploads
    compressor: Compressor
    uncompressed: Compressor
    chunk_bytes: int
    staged: Mapping[str, Snapshot]
    report: Reporter
    clock: Clock
    journal: Callable[[str], PutJournal]
    resumed: bool
    manifest_sent: bool
    manifest_damaged: bool
    sent: Callable[[int], None]
    progress: Callable[[], None] = field(init=False)
    stored_at: datetime | None = field(default=None, init=False)
    _placed: dict[str, StoredObject] = field(default_factory=dict, init=False)
    _sent: set[str] = field(default_factory=set, init=False)
    _sent_instead: bool = field(default=False, init=False)

    async def put_part(self, step: Send | Patch | Reuse) -> Part:
        """Send, patch or copy one file; return it as the manifest will name it.

        Raises StoreError, SourceObjectMissing.
        """
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Patch):
            return await self._send_patch(step)
        carried_from = None
        if step.carried:
            carried_from = step.part.carried_from or naming.upload_of(step.part.key)
        origin: Origin = "carried" if step.carried else "copied"
        part = relocate(
            step.part, system_id=self.system_id, upload=self.upload_id, origin=origin, carried_from=carried_from
        )
        snapshot = self.staged.get(part.database)
        if snapshot is None:
            copies = [
                self._copy_or_resend(part.database, old, new)
                for old, new in zip(step.part.objects, part.objects, strict=True)
            ]
            await gather_all(copies, "copy-object")
            return part
        if not await self._copy_all(step.part.objects, part.objects):
            raw = next(file for file in snapshot.files if file.name == part.name)
            return await self._send(Send(part.database, raw), counted=False)
        return replace(part, storage_version=snapshot.storage_version)

    async def put_memories(self, part: MemoriesPart, draft: MemoriesDraft) -> MemoriesPart:
        """Send the memories; return the part as the manifest will name it. Raises StoreError, StateError."""
        stored = await self._already_there(part.key, part.metadata)
        if stored is None:
            async with aclosing(draft.stream()) as body:
                stored = await self._put(part.key, body, part.metadata, raw_size=part.stored_size)
        self.report.moved(part.raw_size)
        self._placed[part.key] = stored
        return replace(part, stored_size=stored.size)

    async def confirm(
        self, parts: Iterable[Part], memories: MemoriesPart | None
    ) -> tuple[tuple[Part, ...], MemoriesPart | None]:
        """Confirm that the store has all objects, and return parts and memories with their ETags.

        The parts are returned with the results of the verification, which has ended.

        Objects that an earlier attempt put under other names, as another version or with other settings, are removed.

        Raises StoreError (transient) if the store lacks an object that it accepted, ChangedObjectError (transient) if
        one has other bytes, and UploadNotContinued.
        """
        prefix = f"{naming.uploads_prefix(self.system_id)}{self.upload_id}/"
        absent = "" if self.manifest_damaged else naming.manifest_key(self.system_id, self.upload_id)
        found = await self._confirmation().objects(prefix, self._placed.values(), absent=absent)
        if self.resumed or self._sent_instead:
            await self._remove_others()
        sent = (item.modified for key, item in found.items() if item.modified and key in self._sent)
        self.stored_at = max(sent, default=None)
        etags = {key: item.etag for key, item in found.items()}
        tagged = tuple(self._verified(part).with_etags(etags) for part in parts)
        return tagged, replace(memories, etag=found[memories.key].etag) if memories else None

    async def put_manifest(self, manifest: Manifest) -> None:
        """Put the manifest and confirm it. If the answer was lost, a manifest that can be read back is enough."""
        data = manifest.encode()
        try:
            stored = await self._put(manifest.key, _once(data), manifest_metadata(data), raw_size=len(data))
            await self._confirmation().object(stored)
        except StoreError as error:
            if not error.transient or isinstance(error, ChangedObjectError):
                raise
            with suppress(StoreError):
                if await self.uploads.manifest(manifest.upload_id) == manifest:
                    return
            raise

    async def _remove_others(self) -> None:
        others = await self.uploads.others(self.upload_id, self._placed)
        if others and self.manifest_sent:
            raise UploadNotContinued(f"its manifest was sent, and {others[0]} would be removed")
        if not await self.uploads.delete(self.upload_id, others):
            for key in others:
                if is_read_by_name(key, self._placed):
                    raise UploadNotContinued(f"{key} does not belong to it any more, and cannot be removed")

    def _confirmation(self) -> Confirmation:
        return Confirmation(self.store, self.clock, self.progress)

    def _verified(self, part: Part) -> Part:
        copy = self.staged.get(part.database)
        return replace(part, verified=copy.verified, unverified_reason=copy.unverified_reason) if copy else part

    async def _send(self, step: Send, *, counted: bool = True) -> Part:
        """Send one file. `counted`: its size is part of the phase's total."""
        name = naming.object_name(step.file.name)
        part = self._sent_part(
            step.database,
            step.file,
            key=naming.object_key(self.system_id, self.upload_id, name),
            compression=self.compressor.compression,
        )
        stored = await self._send_file(step.database, step.file, part.objects[0], self.compressor, counted=counted)
        return replace(part, stored_size=stored.size)

    async def _send_patch(self, step: Patch) -> Part:
        """Send the patch while the store copies the layers; if it does not copy one as it was, send the whole file."""
        layers = patched_layers(step, system_id=self.system_id, upload_id=self.upload_id)
        copy = partial(self._copy_all, step.layers, layers[:-1])
        send = partial(self._send_file, step.database, step.patch, layers[-1], self.uncompressed)
        if self.uploads.copies:
            copied, _ = await gather_all([copy(), send()], "patched-part")
        elif copied := await copy():
            await send()
        if not copied:
            self._placed.pop(layers[-1].key, None)
            return await self._send(Send(step.database, step.file), counted=False)
        return self._sent_part(
            step.database,
            step.file,
            key=layers[0].key,
            compression=PATCHES,
            stored_size=sum(layer.stored_size for layer in layers),
            layers=layers,
        )

    def _sent_part(
        self,
        database: str,
        file: RawFile,
        *,
        key: str,
        compression: PartCompression,
        stored_size: int = 0,
        layers: tuple[Layer, ...] = (),
    ) -> Part:
        snapshot = self.staged[database]
        return Part(
            database=database,
            name=file.name,
            key=key,
            raw_size=file.size,
            stored_size=stored_size,
            sha256=file.sha256,
            compression=compression,
            origin="sent",
            verified=False,
            header_iteration=snapshot.header_iteration,
            storage_version=snapshot.storage_version,
            layers=layers,
        )

    async def _send_file(
        self, database: str, file: RawFile, new: ObjectRecord, compressor: Compressor, *, counted: bool = True
    ) -> StoredObject:
        """Send a file of a snapshot, unless an earlier attempt has put its object."""
        stored = await self._already_there(new.key, new.metadata)
        progress, is_there = _RawProgress(self.report if counted else NoReporter()), stored is not None
        if stored is None:
            path = self.staged[database].folder / file.name
            async with (
                aclosing(compressor.stream(path, checksums=file.checksums, read=progress.read)) as pieces,
                aclosing(progress.watch(pieces)) as body,
            ):
                stored = await self._put(new.key, body, new.metadata, raw_size=file.size, watched=progress)
        progress.complete(file.size, kept=is_there)
        self._placed[new.key] = stored
        return stored

    async def _copy_all(self, sources: Sequence[ObjectRecord], copies: Sequence[ObjectRecord]) -> bool:
        """Let the store copy objects. Return False, with none placed, if it does not copy one of them as it was."""
        try:
            await gather_all([self._copy(*pair) for pair in zip(sources, copies, strict=True)], "copy-object")
        except (CopyUnsupported, NoSuchObject) as error:
            _log.info("copy_fallback", upload_id=self.upload_id, key=sources[0].key, reason=error.message)
            for each in copies:
                self._placed.pop(each.key, None)
            self._sent_instead = True  # `confirm` removes the copies, also those that the store finishes later
            self.uploads.copies = False
            return False
        self.uploads.copies = True
        return True

    async def _copy(self, source: ObjectRecord, new: ObjectRecord) -> None:
        """Let the store copy an object, unless it has made the copy after an earlier attempt had given up waiting."""
        expected = StoredObject(new.key, source.stored_size, source.metadata, etag=source.etag)
        copy = await self._already_there(new.key, new.metadata, copied=expected)
        if copy is None:
            copy = await self.store.copy(source.key, new.key, expected=expected, progress=lambda _: self.progress())
        self.progress()
        self._placed[new.key] = copy

    async def _copy_or_resend(self, database: str, source: ObjectRecord, new: ObjectRecord) -> None:
        """Copy an object that is not on this machine. If the store cannot, download it and upload it again."""
        try:
            await self._copy(source, new)
            return
        except NoSuchObject as error:
            raise SourceObjectMissing(database, source.key) from error
        except CopyUnsupported as error:
            if not await self.uploads.holds(source, self.progress):
                raise SourceObjectMissing(database, source.key) from error
            _log.info("copy_fallback", upload_id=self.upload_id, key=source.key, reason=error.message)
        async with aclosing(self.store.get(source.key)) as body:
            stored = await self._put(new.key, body, new.metadata, raw_size=source.stored_size)
        if stored.size != source.stored_size:
            raise SourceObjectMissing(database, source.key)
        self._placed[new.key] = stored

    async def _already_there(
        self, key: str, metadata: Mapping[str, str], *, copied: StoredObject | None = None
    ) -> StoredObject | None:
        """Return the object if an earlier attempt has put the same bytes, or had `copied` copied; else None.

        Raises UploadNotContinued if the object must not be put any more.
        """
        if not self.resumed:
            return None
        with suppress(NoSuchObject, UnreadableObject):
            if copied is None:
                stored = await self.store.head(key)
            else:  # a directory computes the ETag, with which the copy is compared
                stored = await self.store.inspect(key, progress=lambda _: self.progress())
            # A store may add names of its own (rclone: mtime).
            is_same = stored.metadata.items() >= metadata.items()
            if is_same and (copied is None or (stored.etag and not difference(copied, stored))):
                return stored
        if self.manifest_sent:
            raise UploadNotContinued(f"its manifest was sent, and {key} would be put")
        return None

    async def _put(
        self,
        key: str,
        body: AsyncIterator[bytes],
        metadata: Mapping[str, str],
        *,
        raw_size: int,
        watched: _RawProgress | None = None,
    ) -> StoredObject:
        def progress(count: int) -> None:
            self.sent(count)
            if watched is not None:
                watched.sent(count)
            self.progress()

        size = part_bytes(raw_size, self.chunk_bytes)
        stored = await self.store.put(
            key,
            body,
            metadata=metadata,
            part_bytes=size,
            progress=progress,
            kept=ignore_progress if watched is None else watched.kept,
            journal=self.journal(key),
        )
        self._sent.add(key)
        return stored


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
