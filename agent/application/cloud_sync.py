"""The cloud method: from what changed to a whole upload. Decides; `upload` carries out, the uploader records.

recall     an upload that a killed process finished or left; a ledger that was lost: ask the bucket
survey     stat fingerprints against the ledger: nothing differs, nothing is read
stage      snapshots of what differs; digests against the ledger: the same bytes are no change
intent     what is about to be uploaded, under which id: on disk before the first PUT
upload     send, copy, carry; the manifest last
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from agent import __version__
from agent.application.progress import limit_standstill
from agent.application.recorder import succeeded
from agent.application.upload import Gone, Upload
from agent.application.uploads import Uploads
from agent.domain import naming
from agent.domain.databases import Survey, is_asked
from agent.domain.errors import CloudUploadError, SnapshotError, StoreError
from agent.domain.events import SyncRequested
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.parts import Send, plan
from agent.domain.route import CLOUD, URGENT, target_backoff
from agent.domain.states import Intent, Problem, Target, TargetRecord, due
from agent.ports import (
    Clock,
    Compressor,
    Delivered,
    Ledger,
    ObjectStore,
    Reporter,
    Snapshot,
    SnapshotTaker,
    Unchanged,
)

_log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """One attempt at a request: what is asked, what was seen, and what came of copying it.

    `same` are copies whose bytes the target has already, `changed` those it lacks.
    """

    request: SyncRequested
    report: Reporter
    started: float
    survey: Survey = field(default_factory=dict)
    same: dict[str, Snapshot] = field(default_factory=dict)
    changed: dict[str, Snapshot] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)

    @property
    def asked(self) -> Survey:
        """What was seen of the databases that the request asks for."""
        reflections, graphs = self.request.upload_reflections, self.request.upload_knowledge_graph
        return {
            name: seen
            for name, seen in self.survey.items()
            if is_asked(name, reflections=reflections, knowledge_graph=graphs)
        }

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256, over all that is about to be uploaded."""
        return {file.name: file.sha256 for snapshot in self.changed.values() for file in snapshot.files}


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
            await self._ledger.forget(self.target, [gone.database])
            raise _failed(gone) from gone
        except StoreError as error:
            raise _failed(error) from error
        except SnapshotError as error:
            raise CloudUploadError(error.message, CLOUD, error, hint=error.hint, forwardable=False) from error
        except TimeoutError as error:
            raise CloudUploadError(
                f"{self._store.location}: nothing moved for {self._standstill_seconds:g} s",
                CLOUD,
                error,
                transient=True,
                hint="akosha_upload_timeout_seconds sets the limit",
            ) from error
        finally:
            for snapshot in (*attempt.same.values(), *attempt.changed.values()):
                await asyncio.shield(self._taker.discard(snapshot))

    async def _sync(self, attempt: Attempt) -> Delivered | Unchanged:
        await self._recall()
        record = await self._ledger.record(self.target)
        attempt.survey = await self._taker.survey()
        urgent = attempt.request.reason in URGENT
        wanted = due(record, attempt.asked, self._clock.now(), urgent=urgent)
        if not wanted:
            return Unchanged(why=_why_nothing(attempt.survey, record))
        await self._ledger.owe(self.target, wanted)
        attempt.report.phase("snapshot", sum(attempt.survey[name].size for name in wanted))
        for database in sorted(wanted):
            await self._stage(database, attempt, record)
        await self._write_down(attempt, record)
        if not attempt.changed:
            if attempt.problems:
                reasons = "; ".join(f"{name}: {problem.reason}" for name, problem in sorted(attempt.problems.items()))
                raise CloudUploadError(reasons, CLOUD, forwardable=False)
            return Unchanged(why="the bytes are those already delivered")
        manifest = await self._upload(attempt)
        return Delivered(
            manifest=manifest,
            fingerprints={name: snapshot.fingerprint for name, snapshot in attempt.changed.items()},
            problems=attempt.problems,
            result=succeeded(manifest, method=CLOUD, location=self._store.location),
        )

    async def _recall(self) -> None:
        """Bring the ledger up to what the bucket knows: an upload that was finished but not recorded is adopted."""
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

    async def _stage(self, database: str, attempt: Attempt, record: TargetRecord) -> None:
        known, seen = record.databases.get(database), attempt.survey[database]
        try:
            snapshot = await self._taker.take(database)
        except SnapshotError as error:
            failures = known.problem.failures + 1 if known and known.problem else 1
            retry_at = self._clock.now() + target_backoff(failures) if error.transient else None
            attempt.problems[database] = Problem(str(error), seen, failures, retry_at)
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
            await self._uploads.sweep()
            await self._ledger.abandon(self.target)
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
            carried={name for name, known in record.databases.items() if known.fingerprint != attempt.survey.get(name)},
            compression=self._compressor.compression,
            deduplicate=self._deduplicate,
        )
        attempt.report.phase("upload", sum(step.file.size for step in steps if isinstance(step, Send)))
        async with limit_standstill(self._standstill_seconds) as moved:
            upload = Upload(
                upload_id=intent.upload_id,
                system_id=self.target.system_id,
                store=self._store,
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
                rows=_rows(attempt.changed, record),
                incomplete=_incomplete(attempt.changed, record),
                bytes_sent=upload.bytes_sent,
                duration_seconds=round(self._clock.monotonic() - attempt.started, 3),
            )
            await upload.put_manifest(manifest.encode())
        return manifest

    async def _new_intent(self, attempt: Attempt, record: TargetRecord) -> Intent:
        begun, _ = await self._uploads.ids_after(record.newest_upload_id)
        newest = begun[-1] if begun else record.newest_upload_id
        return Intent(
            request_id=attempt.request.request_id,
            upload_id=naming.next_upload_id(self._clock.now(), newest, self.target.system_id),
            digests=attempt.digests,
            databases=tuple(sorted(attempt.changed)),
        )


def _failed(error: StoreError) -> CloudUploadError:
    return CloudUploadError(error.message, CLOUD, error, transient=error.transient, hint=error.hint)


def _rows(changed: Mapping[str, Snapshot], record: TargetRecord) -> dict[str, dict[str, int]]:
    rows = {name: dict(known.rows) for name, known in record.databases.items() if known.rows}
    return rows | {name: dict(snapshot.rows) for name, snapshot in changed.items() if snapshot.verified}


def _incomplete(changed: Mapping[str, Snapshot], record: TargetRecord) -> dict[str, str]:
    """Name what stays owed: what could not be copied just now, and what waits since an attempt before."""
    return {name: k.problem.reason for name, k in record.databases.items() if k.problem and name not in changed}


def _why_nothing(survey: Survey, record: TargetRecord) -> str:
    if not survey:
        return "there are no databases yet"
    waiting = {name: known.problem.reason for name, known in record.databases.items() if known.problem}
    if waiting:
        return "; ".join(f"{name} waits: {reason}" for name, reason in sorted(waiting.items()))
    return "nothing has changed since the last upload"
