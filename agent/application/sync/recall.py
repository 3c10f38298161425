"""What a bucket tells before a sync: uploads that a killed process finished, objects that are missing or damaged."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace

import structlog

from agent.application.sync.attempt import Attempt, Staging
from agent.application.sync.bucket_uploads import LEFT_OVER_AFTER, BucketUploads, NotAManifest
from agent.application.sync.confirmed_upload import ConfirmedUpload
from agent.application.sync.ingestion_markers import IngestionMarkers
from agent.application.sync.lost_databases import LostDatabases
from agent.application.sync.patching import Patching
from agent.application.sync.results import succeeded
from agent.application.sync.unreadable_copies import last_readable
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.errors import CloudUploadError, SnapshotError, StoreError
from agent.domain.events import SyncRequested, request_event_id
from agent.domain.manifest import Manifest
from agent.domain.routing import ASKED, CLOUD
from agent.ports import Clock, Ledger, ObjectStore

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Recall:
    """Updates the ledger from one bucket. `limit_stalls` yields what to call at each progress."""

    target: Target
    store: ObjectStore
    uploads: BucketUploads
    ledger: Ledger
    clock: Clock
    staging: Staging
    patching: Patching
    markers: IngestionMarkers | None
    confirmed: ConfirmedUpload
    lost: LostDatabases
    limit_stalls: Callable[[], AbstractAsyncContextManager[Callable[[], None]]]
    _swept: bool = field(default=False, init=False)

    async def record(self, attempt: Attempt, progress: Callable[[], None]) -> TargetRecord:
        """Update the ledger from the bucket, and return the target's record.

        An upload that was finished but not recorded is adopted. For urgent requests, the newest upload must still
        exist, because nothing can be restored from an emptied bucket. For a person's request, it must be complete too.
        """
        record = await self.ledger.record(self.target)
        if not self._swept:
            await self._sweep(*([record.intent.upload_id] if record.intent else []))
            self._swept = True
        manifest = None
        if record.intent is not None:
            try:
                manifest = await self.uploads.intact_manifest(record.intent.upload_id)
            except NotAManifest as error:  # the upload is not finished: the manifest is put again
                _log.warning("manifest_unreadable", upload_id=record.intent.upload_id, error=str(error))
                attempt.manifest_damaged = True
            if manifest is not None and manifest.digests(record.intent.databases) != record.intent.digests:
                # Neither resumed nor removed: another agent has completed an upload under this ID.
                _log.warning("upload_id_taken", upload_id=manifest.upload_id, location=self.store.location)
                await self.uploads.discard(await self.ledger.open_puts(self.target))
                await self.ledger.abandon(self.target)
                attempt.abandoned, manifest = manifest.upload_id, None
        elif not record.known:
            manifest = await self.uploads.newest_manifest()
        if manifest is not None:
            _log.info("upload_adopted", upload_id=manifest.upload_id, method=CLOUD, system_id=manifest.system_id)
            request = await self.ledger.find_event(request_event_id(manifest.request_id, CLOUD))
            caused_by = request.caused_by if isinstance(request, SyncRequested) else ()
            result = succeeded(manifest, method=CLOUD, location=self.store.location, caused_by=caused_by)
            result = replace(result, unreadable=await self._unreadable(manifest, record))
            await self.ledger.adopt(self.target, manifest, result)
            await self.patching.retain(manifest)
            if self.markers is not None:
                await self.markers.write(manifest)
        elif attempt.urgent and record.newest_upload_id and not await self.uploads.exists(record.newest_upload_id):
            _log.warning("upload_missing", upload_id=record.newest_upload_id, location=self.store.location)
            await self.ledger.forget(self.target, list(record.databases))
        elif attempt.request.reason in ASKED and record.newest_upload_id and record.intent is None:
            attempt.repairs = await self._forget_damaged(record, record.newest_upload_id, progress)
        return await self.ledger.record(self.target)

    async def _unreadable(self, manifest: Manifest, record: TargetRecord) -> tuple[str, ...]:
        """Return the databases of an upload of this agent that DuckDB could not read, as the note before it says."""
        own = {*record.intent.databases} if record.intent is not None else set[str]()
        unverified = {part.database for part in manifest.parts if not part.verified}
        return tuple(sorted(own & unverified & (await last_readable(self.ledger, self.target)).keys()))

    async def _forget_damaged(self, record: TargetRecord, newest: str, progress: Callable[[], None]) -> str:
        """Send databases again that are damaged in the newest upload and exist on this machine.

        Return the upload, "" if there are no such databases. A directory reads each object for that, unless the upload
        was confirmed just now: then only names, sizes and metadata are compared.
        """
        is_recent = await self.confirmed.is_recent(record)
        damaged = await self.uploads.damaged(newest, progress, reads=not is_recent)
        if damaged == set() and not is_recent:
            await self.confirmed.record(newest)
        names = {*record.databases} if damaged is None else damaged
        if to_send := sorted(names & await self.staging.present()):
            _log.warning("newest_upload_damaged", upload_id=newest, location=self.store.location, names=to_send)
            await self.ledger.forget(self.target, to_send)
        return newest if to_send else ""

    async def forget_missing(self, database: str) -> None:
        """Forget `database` and all others that are missing from the bucket: the next attempt sends them."""
        record = await self.ledger.record(self.target)
        parts = [part for known in record.databases.values() for part in known.parts]
        missing = {database}
        with suppress(StoreError, CloudUploadError):
            async with self.limit_stalls() as progress:
                missing |= await self.uploads.missing(parts, progress)
        with suppress(SnapshotError):  # if the files cannot be listed, none counts as lost
            await self.lost.add(missing - await self.staging.present())
        await self.ledger.forget(self.target, sorted(missing))

    async def _sweep(self, *upload_ids: str) -> None:
        open_puts = {put.put_id for put in await self.ledger.open_puts(self.target)}
        await self.uploads.sweep(*upload_ids, started_before=self.clock.now() - LEFT_OVER_AFTER, spared=open_puts)
