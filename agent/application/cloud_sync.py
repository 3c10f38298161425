"""The cloud method: from what changed to a whole upload. Decides; `upload` carries out, the uploader records.

recall     an upload that a killed process finished or left; a ledger that was lost: ask the bucket
survey     stat fingerprints against the ledger: nothing differs, nothing is read
stage      snapshots of what differs; digests against the ledger: the same bytes are no change
intent     what is about to be uploaded, under which id: on disk before the first PUT
upload     send, copy, carry; the manifest last
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from agent import __version__
from agent.application.attempt import Attempt
from agent.application.progress import limit_standstill
from agent.application.recorder import succeeded
from agent.application.upload import Gone, Upload
from agent.application.uploads import Uploads
from agent.domain import naming
from agent.domain.errors import CloudUploadError, NamingError, SnapshotError, StoreError, WireError
from agent.domain.events import SyncRequested
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.parts import Send, plan
from agent.domain.route import CLOUD, target_backoff
from agent.domain.states import Intent, Problem, Target, TargetRecord, due
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

_log = structlog.get_logger()


class CloudSync:
    """Delivers whole uploads to one bucket or directory."""

    name = CLOUD

    def __init__(
        self,
        *,
        target: Target,
        identity: Identity,
        store: ObjectStore,
        taker: SnapshotTaker,
        compressor: Compressor,
        ledger: Ledger,
        clock: Clock,
        chunk_bytes: int,
        deduplicate: bool,
        standstill_seconds: float,
    ) -> None:
        self.target = target
        self._identity, self._store, self._taker, self._compressor = identity, store, taker, compressor
        self._ledger, self._clock = ledger, clock
        self._chunk_bytes, self._deduplicate, self._standstill_seconds = chunk_bytes, deduplicate, standstill_seconds
        self._uploads = Uploads(store, target.system_id)
        self._swept = False

    async def is_available(self) -> bool:
        return await self._store.is_available()

    async def aclose(self) -> None:
        await self._store.aclose()

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        attempt = Attempt(request, report, started=self._clock.monotonic())
        try:
            return await self._sync(attempt)
        except Gone as gone:
            await self._forget_missing(gone.database)
            raise _failed(gone) from gone
        except (StoreError, NamingError, WireError) as error:
            raise _failed(error) from error
        except SnapshotError as error:
            raise CloudUploadError(error.message, CLOUD, error, hint=error.hint, forwardable=False) from error
        finally:
            copies = (*attempt.same.values(), *attempt.changed.values())
            await asyncio.shield(asyncio.gather(*(self._taker.discard(copy) for copy in copies)))

    async def _sync(self, attempt: Attempt) -> Delivered | Unchanged:
        async with self._moving():
            record = await self._recall(attempt)
        attempt.survey = await self._taker.survey()
        wanted = due(record, attempt.asked, self._clock.now(), urgent=attempt.urgent)
        if not wanted:
            return Unchanged(why=attempt.why_nothing(record))
        await self._ledger.owe(self.target, wanted)
        attempt.report.phase("snapshot", sum(attempt.survey[name].size for name in wanted))
        for database in sorted(wanted):
            await self._stage(database, attempt, record)
        await self._write_down(attempt, record)
        if not attempt.changed:
            if attempt.problems:
                raise _source_failed(attempt.problems)
            return Unchanged(why="the bytes are those already delivered")
        manifest = await self._upload(attempt)
        return Delivered(
            manifest=manifest,
            fingerprints={name: snapshot.fingerprint for name, snapshot in attempt.changed.items()},
            problems=attempt.problems,
            result=succeeded(manifest, method=CLOUD, location=self._store.location),
        )

    @asynccontextmanager
    async def _moving(self) -> AsyncIterator[Callable[[], None]]:
        """Limit the time without progress in the block, and say which setting does."""
        try:
            async with limit_standstill(self._standstill_seconds) as moved:
                yield moved
        except TimeoutError as error:
            raise CloudUploadError(
                f"{self._store.location}: nothing moved for {self._standstill_seconds:g} s",
                CLOUD,
                error,
                transient=True,
                hint="akosha_upload_timeout_seconds sets the limit",
            ) from error

    async def _recall(self, attempt: Attempt) -> TargetRecord:
        """Bring the ledger up to what the bucket knows, and return what it says then.

        An upload that was finished but not recorded is adopted. Where somebody asks, the newest upload must still be
        there: from an emptied bucket nothing can be restored.
        """
        if not self._swept:
            await self._uploads.sweep()
            self._swept = True
        record = await self._ledger.record(self.target)
        manifest = None
        if record.intent is not None:
            manifest = await self._uploads.manifest(record.intent.upload_id)
            if manifest is not None and manifest.digests(record.intent.databases) != record.intent.digests:
                manifest = None
        elif not record.known:
            manifest = await self._uploads.newest_manifest()
        if manifest is not None:
            _log.info("upload_adopted", upload_id=manifest.upload_id, method=CLOUD, system_id=manifest.system_id)
            result = succeeded(manifest, method=CLOUD, location=self._store.location)
            await self._ledger.adopt(self.target, manifest, result)
        elif attempt.urgent and record.newest_upload_id and not await self._uploads.exists(record.newest_upload_id):
            _log.warning("upload_gone", upload_id=record.newest_upload_id, location=self._store.location)
            await self._ledger.forget(self.target, list(record.databases))
        return await self._ledger.record(self.target)

    async def _forget_missing(self, database: str) -> None:
        """Find out at once what else is no longer in the bucket: all of it is sent whole the next time."""
        record = await self._ledger.record(self.target)
        parts = [part for known in record.databases.values() for part in known.parts]
        missing = {database}
        with suppress(StoreError, CloudUploadError):
            async with self._moving():
                missing |= await self._uploads.missing(parts)
        await self._ledger.forget(self.target, sorted(missing))

    async def _stage(self, database: str, attempt: Attempt, record: TargetRecord) -> None:
        known, seen = record.databases.get(database), attempt.survey[database]
        try:
            snapshot = await self._taker.take(database)
        except SnapshotError as error:
            failures = known.problem.failures + 1 if known and known.problem else 1
            retry_at = self._clock.now() + target_backoff(failures) if error.transient else None
            attempt.problems[database] = Problem(error.message, seen, failures, retry_at, cure=error.hint)
            _log.warning("snapshot_failed", database=database, transient=error.transient, error=str(error))
        else:
            had = {part.name: part.sha256 for part in known.parts} if known else {}
            same = self._deduplicate and had == {file.name: file.sha256 for file in snapshot.files}
            (attempt.same if same else attempt.changed)[database] = snapshot
        attempt.report.moved(seen.size)

    async def _write_down(self, attempt: Attempt, record: TargetRecord) -> None:
        """Settle what staging has found: an upload begun for other bytes is abandoned, unchanged ones are clean."""
        if record.intent is not None and record.intent.digests != attempt.digests:
            _log.info("upload_abandoned", upload_id=record.intent.upload_id, why="the databases have changed since")
            async with self._moving():
                await self._uploads.sweep()
                await self._uploads.remove(record.intent.upload_id)
            await self._ledger.abandon(self.target)
            attempt.abandoned = record.intent.upload_id
        if attempt.same:
            await self._ledger.refresh(self.target, {name: s.fingerprint for name, s in attempt.same.items()})
        if attempt.problems:
            await self._ledger.trouble(self.target, attempt.problems)

    async def _upload(self, attempt: Attempt) -> Manifest:
        record = await self._ledger.record(self.target)
        intent = record.intent or await self._new_intent(attempt, record)
        await self._ledger.begin(self.target, intent)
        steps = plan(
            {name: snapshot.files for name, snapshot in attempt.changed.items()},
            record,
            carried=attempt.carried(record),
            compression=self._compressor.compression,
            deduplicate=self._deduplicate,
        )
        attempt.report.phase("upload", sum(step.file.size for step in steps if isinstance(step, Send)))
        async with self._moving() as moved:
            upload = Upload(
                upload_id=intent.upload_id,
                system_id=self.target.system_id,
                store=self._store,
                uploads=self._uploads,
                compressor=self._compressor,
                chunk_bytes=self._chunk_bytes,
                staged=attempt.changed,
                report=attempt.report,
                moved=moved,
                resumed=record.intent is not None,
            )
            parts = tuple([await upload.place(step) for step in steps])
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
                incomplete=attempt.incomplete(record),
                bytes_sent=upload.bytes_sent,
                duration_seconds=round(self._clock.monotonic() - attempt.started, 3),
            )
            await self._put(upload, manifest)
        return manifest

    async def _put(self, upload: Upload, manifest: Manifest) -> None:
        """Make the upload exist; where the answer was lost, see whether it does."""
        try:
            await upload.put_manifest(manifest.encode())
        except StoreError as error:
            if not error.transient:
                raise
            with suppress(StoreError):
                if await self._uploads.manifest(manifest.upload_id) == manifest:
                    return
            raise

    async def _new_intent(self, attempt: Attempt, record: TargetRecord) -> Intent:
        async with self._moving():
            begun, _ = await self._uploads.ids_after(record.newest_upload_id)
        known = [upload for upload in (*begun, record.newest_upload_id, attempt.abandoned) if upload]
        newest = max(known, key=naming.upload_time, default=None)
        return Intent(
            request_id=attempt.request.request_id,
            upload_id=naming.next_upload_id(self._clock.now(), newest, self.target.system_id),
            digests=attempt.digests,
            databases=tuple(sorted(attempt.changed)),
        )


def _failed(error: StoreError | NamingError | WireError) -> CloudUploadError:
    return CloudUploadError(error.message, CLOUD, error, transient=error.transient, hint=error.hint)


def _source_failed(problems: Mapping[str, Problem]) -> CloudUploadError:
    """The databases are at fault, not the target: no other method would fare better."""
    told = (f"{name}: {problem.reason}" for name, problem in sorted(problems.items()))
    cures = dict.fromkeys(problem.cure for problem in problems.values() if problem.cure)
    return CloudUploadError("; ".join(told), CLOUD, hint="; ".join(cures), forwardable=False)
