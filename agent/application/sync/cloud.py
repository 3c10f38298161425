"""The cloud method: uploads the databases that changed. This module decides, `upload` executes, the subscriber records.

confirmed  if nothing changed and the newest upload was confirmed just now, a person's request ends here
claim      check that the target belongs to this agent; otherwise nothing in it is changed
recall     find an upload that a killed process finished or left; if the ledger was lost, read the bucket
survey     compare fingerprints with the ledger; if nothing differs, no database is read
snapshot   copy the databases that differ; compare digests with the ledger: the same bytes are not a change
settle     record unchanged databases and problems; continue or remove an unfinished upload of other bytes
intent     record the upload's ID and digests, on disk before the first PUT
files      send, copy and carry over the files; beside that:
verify     read the copies with DuckDB; if one looks damaged, stop, take another copy, and go on at settle
rows       write the rows that the bucket lacks to a draft of memories.json
memories   send memories.json
confirm    check that the store has every object that it accepted
manifest   put the manifest and confirm it
"""

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from functools import partial

import structlog

from agent import __version__
from agent.application.memories.delta import Delta, MemoryDelta
from agent.application.status_warnings import has_warning
from agent.application.sync.attempt import Attempt, Staging, describe_problems
from agent.application.sync.bucket_uploads import BucketUploads, UploadIds
from agent.application.sync.confirmation import ChangedObjectError
from agent.application.sync.confirmed_upload import ConfirmedUpload, SentManifest
from agent.application.sync.ingestion_markers import IngestionMarkers
from agent.application.sync.lost_databases import LostDatabases
from agent.application.sync.ownership import WARNING, Ownership, StateCheck
from agent.application.sync.patching import Patching
from agent.application.sync.recall import Recall
from agent.application.sync.results import succeeded
from agent.application.sync.stall import StallMonitor, stall_timeout
from agent.application.sync.unreadable_copies import UnreadableCopies
from agent.application.sync.upload import SourceObjectMissing, Upload, UploadNotContinued
from agent.domain.delivery_state import Intent, Target, TargetRecord
from agent.domain.errors import (
    CloudUploadError,
    DamagedCopy,
    NamingError,
    SnapshotError,
    StagedCopyChanged,
    StoreError,
    WireError,
)
from agent.domain.events import ALREADY_DELIVERED, SyncRequested
from agent.domain.identity import Identity, Machine
from agent.domain.manifest import Manifest
from agent.domain.routing import ASKED, CLOUD
from agent.domain.upload_parts import Part
from agent.domain.upload_plan import Patch, is_worth_continuing, plan
from agent.ports import (
    Clock,
    Compressor,
    Delivered,
    Ledger,
    ObjectStore,
    Reporter,
    SnapshotTaker,
    Unchanged,
)
from agent.ports.concurrency import ConcurrentTasks

_log = structlog.get_logger()


class CloudSync:
    """Delivers uploads to one bucket or directory. `standstill_seconds`: longest time without progress."""

    name = CLOUD

    def __init__(
        self,
        *,
        target: Target,
        identity: Identity,
        store: ObjectStore,
        taker: SnapshotTaker,
        compressor: Compressor,
        delta: MemoryDelta,
        ledger: Ledger,
        clock: Clock,
        machine: Machine,
        has_state: StateCheck,
        uncompressed: Compressor,
        patching: Patching,
        chunk_bytes: int,
        deduplicate: bool,
        ingestion_markers: bool,
        standstill_seconds: float,
        stall_monitor: StallMonitor | None = None,
    ) -> None:
        self.target = target
        self._identity, self._store, self._compressor, self._delta = identity, store, compressor, delta
        self._uncompressed, self._patching = uncompressed, patching
        self._ledger, self._clock = ledger, clock
        self._chunk_bytes, self._deduplicate, self._standstill_seconds = chunk_bytes, deduplicate, standstill_seconds
        self._stall_monitor = stall_monitor
        self._staging = Staging(
            target=target, taker=taker, ledger=ledger, clock=clock, deduplicate=deduplicate, verify_later=True
        )
        self._uploads = BucketUploads(store, target.system_id)
        self._ids = UploadIds(self._uploads, target.system_id, identity.agent_id, store.location, ledger, clock)
        self._lost = LostDatabases(ledger, clock)
        self._unreadable = UnreadableCopies(target, ledger, clock)
        self._confirmed, self._sent_manifest = ConfirmedUpload(target, ledger, clock), SentManifest(target, ledger)
        self.ownership = Ownership(
            store=store,
            target=target,
            identity=identity,
            machine=machine,
            ledger=ledger,
            clock=clock,
            has_state=has_state,
        )
        self._markers = (
            IngestionMarkers(
                store, chunk_bytes=chunk_bytes, standstill_seconds=standstill_seconds, stall_monitor=stall_monitor
            )
            if ingestion_markers
            else None
        )
        self._recall = Recall(
            target=target,
            store=store,
            uploads=self._uploads,
            ledger=ledger,
            clock=clock,
            staging=self._staging,
            patching=patching,
            markers=self._markers,
            confirmed=self._confirmed,
            lost=self._lost,
            limit_stalls=self._limit_stalls,
        )

    @property
    def store(self) -> ObjectStore:
        """The store of the uploads, which `aclose` closes."""
        return self._store

    async def is_available(self) -> bool:
        return await self._store.is_available()

    async def aclose(self) -> None:
        await self.ownership.aclose()
        await self._store.aclose()

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        try:
            async with self._staging.attempt(request, report) as attempt:
                return await self._sync(attempt)
        except SourceObjectMissing as error:
            await self._recall.forget_missing(error.database)
            raise _failed(error) from error
        except (StoreError, NamingError, WireError) as error:
            raise _failed(error) from error
        except SnapshotError as error:
            again = isinstance(error, StagedCopyChanged)  # the next attempt copies the databases again
            raise CloudUploadError(
                error.message, CLOUD, error, hint=error.hint, transient=again, forwardable=False
            ) from error

    async def _sync(self, attempt: Attempt) -> Delivered | Unchanged:
        if await self._was_just_confirmed(attempt):
            return Unchanged(reason=await self._staging.skip_reason(attempt, await self._ledger.record(self.target)))
        async with self._limit_stalls() as progress:
            await self.ownership.claim(take_over=attempt.request.take_over, new_target=attempt.request.new_target)
            record = await self._recall.record(attempt, progress)
        if not await self._staging.copy(attempt, record):
            return Unchanged(reason=await self._staging.skip_reason(attempt, record))
        manifest = None
        while manifest is None:
            await self._continue_or_abandon(attempt, record)
            await self._staging.settle(attempt)
            if not attempt.changed:
                if attempt.problems:
                    raise _unfinished(attempt)
                return Unchanged(reason=ALREADY_DELIVERED)
            try:
                manifest = await self._upload(attempt)
            except DamagedCopy as damaged:  # at most once for each database
                record = await self._ledger.record(self.target)
                await self._staging.retake(attempt, record, damaged.database)
        await self._confirmed.record(manifest.upload_id)
        return Delivered(
            manifest=manifest,
            fingerprints={name: snapshot.fingerprint for name, snapshot in attempt.changed.items()},
            problems=attempt.problems | attempt.unchecked,
            result=replace(
                succeeded(manifest, method=CLOUD, location=self._store.location),
                repairs=attempt.repairs,
                unreadable=tuple(sorted(name for name, copy in attempt.changed.items() if copy.unreadable)),
            ),
        )

    async def _was_just_confirmed(self, attempt: Attempt) -> bool:
        """Return whether a person's request can be answered without asking the store.

        Nothing has changed, and the newest upload was confirmed less than CONFIRMED_FOR ago. A directory is always
        asked: that takes no request, and its disk may have been removed.
        """
        request = attempt.request
        if request.reason not in ASKED or request.take_over or request.new_target or self.ownership.is_directory:
            return False
        record = await self._ledger.record(self.target)
        if not await self._confirmed.is_recent(record) or await has_warning(self._ledger, WARNING):
            return False
        return not await self._staging.lacks(attempt, record)

    def _limit_stalls(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        return stall_timeout(
            self._standstill_seconds, self._store.location, CloudUploadError, CLOUD, stall_monitor=self._stall_monitor
        )

    async def _continue_or_abandon(self, attempt: Attempt, record: TargetRecord) -> None:
        """Continue an unfinished upload of other bytes with the new ones, or remove its objects.

        It goes on if there are objects or parts to keep, and its manifest cannot be in the store.
        """
        if record.intent is None or record.intent.digests == attempt.digests:
            return
        staged = {name: snapshot.files for name, snapshot in attempt.changed.items()}
        is_open = not attempt.manifest_damaged and not await self._sent_manifest.is_of(record.intent.upload_id)
        if is_open and is_worth_continuing(record.intent.digests, staged, self._chunk_bytes):
            _log.info("upload_continued", upload_id=record.intent.upload_id, reason="the databases have changed since")
            intent = replace(record.intent, digests=attempt.digests, databases=tuple(sorted(attempt.changed)))
            await self._ledger.begin(self.target, intent)
            return
        await self._abandon(attempt, record.intent, "the databases have changed since")

    async def _abandon(self, attempt: Attempt, intent: Intent, reason: str) -> None:
        """Remove the objects of an unfinished upload. The next one gets another ID."""
        _log.info("upload_abandoned", upload_id=intent.upload_id, reason=reason)
        async with self._limit_stalls():
            open_puts = await self._ledger.open_puts(self.target)
            await self._uploads.remove(intent.upload_id, open_puts, manifest_damaged=attempt.manifest_damaged)
        await self._ledger.abandon(self.target)
        attempt.abandoned, attempt.manifest_damaged = intent.upload_id, False

    async def _start_anew(self, attempt: Attempt, intent: Intent) -> None:
        """Abandon an upload in which the store has other bytes than it accepted.

        A resumed upload would trust the object, because its metadata is right.
        """
        open_puts = await self._ledger.open_puts(self.target)
        await self._ledger.abandon(self.target)
        with suppress(StoreError):  # later, a prune removes what is left
            await self._uploads.remove(intent.upload_id, open_puts, manifest_damaged=attempt.manifest_damaged)

    async def _upload(self, attempt: Attempt) -> Manifest:
        if not self.ownership.claimed:
            async with self._limit_stalls():
                await self.ownership.claim(take_over=attempt.request.take_over, create=True)
        record = await self._ledger.record(self.target)
        intent = record.intent or await self._new_intent(attempt, record)
        await self._ledger.begin(self.target, intent)
        upload = Upload(
            upload_id=intent.upload_id,
            system_id=self.target.system_id,
            store=self._store,
            uploads=self._uploads,
            compressor=self._compressor,
            uncompressed=self._uncompressed,
            chunk_bytes=self._chunk_bytes,
            staged=attempt.changed,
            report=attempt.report,
            clock=self._clock,
            journal=partial(self._ledger.put_journal, self.target),
            resumed=record.intent is not None,
            manifest_sent=await self._sent_manifest.is_of(intent.upload_id),
            manifest_damaged=attempt.manifest_damaged,
            sent=attempt.add_sent,
        )
        try:
            async with AsyncExitStack() as draft:
                async with ConcurrentTasks("upload") as tasks:
                    reading = tasks.start(self._read(attempt, record, intent, draft))
                    if upload.manifest_sent or attempt.changed.keys() <= attempt.repeated:
                        await reading  # there may be nothing to send, or the upload may be futile
                    sending = tasks.start(self._send(attempt, record, upload))
                manifest = await self._complete(attempt, record, intent, upload, sending.result(), reading.result())
        except UploadNotContinued as error:
            await self._abandon(attempt, intent, error.message)
            return await self._upload(attempt)  # once: under the next ID, there is nothing of an earlier attempt
        await self._patching.retain(manifest)
        if self._markers is not None:
            await self._markers.write(manifest)
        await self._lost.drop({part.database for part in manifest.parts})
        return manifest

    async def _not_ingested(self, attempt: Attempt) -> Collection[str]:
        """With markers, return the databases whose base has no memories that IngestionWorker reads.

        It needs all of their rows, because the base was uploaded before the markers were switched on.
        """
        if self._markers is None:
            return ()
        bases = {name: base for name, base in (await self._delta.bases()).items() if name in attempt.changed}
        async with self._limit_stalls():
            return await self._uploads.without_plain_memories(bases)

    async def _read(self, attempt: Attempt, record: TargetRecord, intent: Intent, draft: AsyncExitStack) -> Delta:
        """Verify the copies, then read their rows. The draft of memories.json is removed with `draft`.

        Raises DamagedCopy, and CloudUploadError if the upload would be futile: its intent stays, and the next attempt
        resumes it.
        """
        await self._staging.verify(attempt)
        await self._unreadable.update(attempt.changed.values(), record)
        without_base = await self._not_ingested(attempt)
        delta = await draft.enter_async_context(
            self._delta.of(attempt.changed, intent.upload_id, without_base=without_base)
        )
        self._staging.owe_unchecked(attempt, record, delta.errors)
        if attempt.is_futile:
            await self._ledger.record_problems(self.target, attempt.unchecked)
            raise _unfinished(attempt)
        return delta

    async def _send(self, attempt: Attempt, record: TargetRecord, upload: Upload) -> tuple[Part, ...]:
        """Put all files of the databases; return them as the manifest will name them."""
        patches: tuple[Patch, ...] = ()
        if self._deduplicate:
            patches = await self._patching.patches(attempt.changed, record, upload.upload_id)
        steps = plan(
            {name: snapshot.files for name, snapshot in attempt.changed.items()},
            record,
            carried=attempt.carried(record),
            compression=self._compressor.compression,
            deduplicate=self._deduplicate,
            patches=patches,
        )
        attempt.report.phase("upload", sum(step.sent_bytes for step in steps))
        async with self._limit_stalls() as upload.progress:
            return tuple([await upload.put_part(step) for step in steps])

    async def _complete(
        self,
        attempt: Attempt,
        record: TargetRecord,
        intent: Intent,
        upload: Upload,
        parts: tuple[Part, ...],
        delta: Delta,
    ) -> Manifest:
        """Put memories.json, confirm all objects, put the manifest."""
        included = {part.database for part in parts}
        lost = {name: reason for name, reason in (await self._lost.reasons()).items() if name not in included}
        memories = delta.part
        async with self._limit_stalls() as upload.progress:
            if delta.part and delta.draft:
                attempt.report.phase("memories", delta.part.raw_size)
                memories = await upload.put_memories(delta.part, delta.draft)
            try:
                parts, memories = await upload.confirm(parts, memories)
            except ChangedObjectError:
                await self._start_anew(attempt, intent)
                raise
            manifest = Manifest(
                system_id=self.target.system_id,
                upload_id=intent.upload_id,
                uploaded_at=self._clock.now(),
                request_id=attempt.request.request_id,
                agent_id=self._identity.agent_id,
                agent_version=__version__,
                triggered_by=attempt.request.reason,
                parts=parts,
                rows=attempt.rows(record),
                incomplete=lost | attempt.incomplete(record),
                bytes_sent=attempt.bytes_sent,
                duration_seconds=round(self._clock.monotonic() - attempt.started, 3),
                memories=memories,
                without_memories=delta.without,
                memories_omitted=delta.omitted,
                time_zone=delta.time_zone,
            )
            # Interrupted puts of objects that the upload no longer has.
            await self._uploads.discard(await self._ledger.open_puts(self.target))
            await self.ownership.check(uploads=False)  # another machine may have taken over during the upload
            await self._sent_manifest.record(manifest.upload_id)
            await upload.put_manifest(manifest)
        await self._ids.compare_with_clock(manifest.upload_id, upload.stored_at)
        return manifest

    async def _new_intent(self, attempt: Attempt, record: TargetRecord) -> Intent:
        async with self._limit_stalls():
            started, complete = await self._uploads.ids_after(record.newest_upload_id)
            await self.ownership.check_known(record, complete)
            upload_id = await self._ids.next(started, complete, record.newest_upload_id, attempt.abandoned)
        return Intent(
            request_id=attempt.request.request_id,
            upload_id=upload_id,
            digests=attempt.digests,
            databases=tuple(sorted(attempt.changed)),
        )


def _unfinished(attempt: Attempt) -> CloudUploadError:
    message, hint = describe_problems(attempt.problems | attempt.unchecked)
    return CloudUploadError(message, CLOUD, hint=hint, forwardable=False)


def _failed(error: StoreError | NamingError | WireError) -> CloudUploadError:
    return CloudUploadError(error.message, CLOUD, error, transient=error.transient, hint=error.hint)
