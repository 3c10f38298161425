"""Ingest the uploads of one system into Akosha, in order. Events start a check; the bucket shows which uploads exist.

An upload is finished when the cursor is past it: it was ingested or refused. Before that, any step may be repeated
without effect: the memory ledger knows which memories Akosha has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from agent.application.ingest.cursor import Cursor, advance_unchanged, plan
from agent.application.ingest.journal import IngestJournal
from agent.application.ingest.turns import Turn, Turns
from agent.application.ingest.upload_ingester import UploadIngester
from agent.application.signal import Signal
from agent.application.sync.bucket_uploads import BucketUploads
from agent.domain.errors import AkoshaError, SinkError, SnapshotError, StagingFull, StateError, WireError
from agent.domain.events import IngestCompleted, IngestFailed
from agent.domain.manifest import Manifest
from agent.domain.memories import Tally
from agent.domain.naming import is_in_future
from agent.domain.routing import target_backoff
from agent.ports import Capabilities, Clock

TRIES = 7
"""Attempts per upload that differs from its manifest: it may be incomplete yet. Pauses are 30 s, 60 s ... 15 min."""

MOST_NOTIFIED = 10_000
"""Maximum number of notified uploads that are remembered."""

_AKOSHA = "akosha "
"""Key of an outage of Akosha, which all systems share. It is not a valid system ID."""

_log = structlog.get_logger()


class Outages:
    """Logs the start and the end of each outage once. An outage of Akosha is logged once for all systems."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()

    def failed(self, system_id: str, error: AkoshaError, **more: object) -> None:
        key = _AKOSHA if isinstance(error, SinkError) else system_id
        log = _log.debug if key in self._waiting else _log.warning
        self._waiting.add(key)
        log("ingest_waiting", system_id=system_id, error=str(error), **more)

    def passed(self, system_id: str, *, akosha: bool) -> None:
        """End the outage of a system and, with `akosha`, that of Akosha."""
        over = self._waiting & ({system_id, _AKOSHA} if akosha else {system_id})
        if over:
            _log.info("ingest_resumed", system_id=system_id)
        self._waiting -= over


def is_final(error: AkoshaError) -> bool:
    """Return whether a retry cannot fix the error: the ledger cannot be used."""
    return isinstance(error, StateError) and not error.transient


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemOutcome:
    """The result of one `catch_up`: number of uploads ingested and refused, and the memories pushed.

    `refusal` is the reason of the first refusal.
    """

    ingested: int = 0
    refused: int = 0
    refusal: str = ""
    tally: Tally = field(default_factory=Tally)

    def __add__(self, other: "SystemOutcome") -> "SystemOutcome":
        return SystemOutcome(
            ingested=self.ingested + other.ingested,
            refused=self.refused + other.refused,
            refusal=self.refusal or other.refusal,
            tally=self.tally + other.tally,
        )


@dataclass(slots=True)
class _Ingestion:
    """An upload that is being ingested. `later` are the IDs of the uploads after it."""

    manifest: Manifest
    later: Sequence[str]
    turn: Turn
    tally: Tally = field(default_factory=Tally)
    source: str = "memories"
    faults: list[str] = field(default_factory=list)


class SystemIngester:
    """Ingests the new uploads of one system whenever it is notified. Takes turns with other systems.

    Retries transient failures after 30 s, doubling to 15 min.
    """

    def __init__(
        self,
        system_id: str,
        *,
        ingest: UploadIngester,
        journal: IngestJournal,
        clock: Clock,
        turns: Turns,
        outages: Outages,
    ) -> None:
        self.system_id = system_id
        self._ingest, self._journal, self._clock, self._turns, self._outages = ingest, journal, clock, turns, outages
        self._uploads = BucketUploads(ingest.store, system_id)
        self._signal = Signal(clock, f"react-{system_id}")
        self._cursor = Cursor()
        self._caught_up_once = self._busy = False
        self._failure: AkoshaError | None = None
        self._failures = 0
        self._notified_uploads: set[str] = set()
        self._foreign: set[str] = set()
        self._reported_upload, self._attempts = "", 0
        self._unusable: dict[tuple[str, str], tuple[str, str]] = {}

    @property
    def waits_for_akosha(self) -> bool:
        return isinstance(self._failure, SinkError)

    def notify(self, upload: str = "") -> None:
        """Catch up now. Ingest `upload` even if newer uploads are finished.

        If two agents of one system upload at the same time, the upload with the older ID may be completed later.
        """
        if upload and len(self._notified_uploads) < MOST_NOTIFIED:
            self._notified_uploads.add(upload)
        self._signal.set()

    def notify_if_idle(self) -> None:
        """Catch up now, unless that is in progress or waits for a retry."""
        if self._failure is None and not self._busy:
            self._signal.set()

    async def run(self) -> None:
        """Catch up at the start and at each notification, until cancelled. Return if the system has no uploads.

        Raises errors that a retry cannot fix: the ledger cannot be used.
        """
        while True:
            await self._signal.wait(0)  # clear notifications that this pass covers
            wait = None
            self._busy = True
            try:
                await self.catch_up()
            except AkoshaError as error:
                if is_final(error):
                    raise
                wait = self._delay(error).total_seconds()
            finally:
                self._busy = False
            if self._failure is None and self._cursor == Cursor():
                if await self._signal.wait(0):
                    continue
                return
            await self._signal.wait(wait)

    async def catch_up(self, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> SystemOutcome:
        """Ingest every upload that is newer than the last finished one; report how many of them are done.

        Raises SinkError, StoreError, StateError, and WireError if an upload may still be incomplete. The uploads
        before the failed one are finished.
        """
        self._cursor = await self._journal.cursor(self.system_id)
        outcome, failure = SystemOutcome(), None
        try:
            async with self._turns.one():
                if not self._caught_up_once:
                    await self._revisit_if_akosha_changed()
                new = await self._new_uploads()
            todo = [*await self._late_uploads(), *new]
            for at, upload in enumerate(todo):
                on_progress(at, len(todo))
                async with self._turns.one() as turn:
                    outcome += await self._ingest_upload(upload, todo[at + 1 :], turn)
                self._notified_uploads.discard(upload)
            on_progress(len(todo), len(todo))
        except AkoshaError as error:
            failure = error
        self._failure, self._failures = failure, self._failures + 1 if failure else 0
        if failure is not None:
            raise failure
        self._caught_up_once = True
        self._outages.passed(self.system_id, akosha=False)
        return outcome

    async def _new_uploads(self) -> list[str]:
        """Return the uploads that are newer than the last finished one.

        Skip IDs ahead of the clock whose manifest is not of this system: if the cursor moved past such an ID, all
        later uploads would be missed.
        """
        _, complete = await self._uploads.ids_after(self._cursor.through)
        now = self._clock.now()
        return [upload for upload in complete if not is_in_future(upload, now) or await self._is_ours(upload)]

    async def _is_ours(self, upload: str) -> bool:
        if upload in self._foreign:
            return False
        try:
            await self._ingest.manifest(self.system_id, upload)
        except WireError as error:
            if error.transient:
                return True  # the upload may be incomplete: `_ingest_upload` retries or refuses it
            self._foreign.add(upload)
            _log.warning("foreign_uploads", system_id=self.system_id, names=[upload], reason=error.message)
            return False
        return True

    def _delay(self, error: AkoshaError) -> timedelta:
        asked = error.retry_after if isinstance(error, SinkError) else None
        delay = max(target_backoff(self._failures), timedelta(seconds=min(asked or 0.0, 900.0)))
        self._outages.failed(self.system_id, error, delay_seconds=delay.total_seconds())
        return delay

    async def _revisit_if_akosha_changed(self) -> None:
        """If Akosha may accept memories that it did not take before, ingest the newest upload again."""
        counts = await self._ingest.push.ledger.counts(self._ingest.target(self.system_id))
        if not (counts.waiting or counts.refused):
            return
        _, again = await self._ingest.connect(self.system_id)
        if again:
            _, complete = await self._uploads.ids_after(None)
            before = [upload for upload in complete[:-1] if upload < (self._cursor.through or "")]
            await self._save(replace(self._cursor.without(again), through=before[-1] if before else None))

    async def _late_uploads(self) -> list[str]:
        """Return the notified uploads that the cursor is past, but that are not finished."""
        for upload in sorted(self._notified_uploads):
            if await self._journal.is_finished(upload):
                self._notified_uploads.discard(upload)
        return sorted(upload for upload in self._notified_uploads if upload <= (self._cursor.through or ""))

    async def _ingest_upload(self, upload: str, later: Sequence[str], turn: Turn) -> SystemOutcome:
        started = self._clock.monotonic()
        try:
            manifest = await self._ingest.manifest(self.system_id, upload)
            if manifest is None:
                _log.info("upload_missing", system_id=self.system_id, upload_id=upload)
                await self._save(self._cursor.past(upload))
                self._attempts = 0
                return SystemOutcome()
            ingestion = _Ingestion(manifest, later, turn)
            await self._push(ingestion)
        except WireError as error:
            if not error.transient:
                return await self._refuse(upload, str(error), Tally())
            self._attempts += 1
            await self._report_delay(upload, error)
            raise
        except (SinkError, SnapshotError, StateError) as error:
            self._attempts += not isinstance(error, SinkError | StagingFull)
            await self._report_delay(upload, error)
            raise
        if ingestion.faults:
            return await self._refuse(upload, "; ".join(ingestion.faults), ingestion.tally)
        seconds = self._clock.monotonic() - started
        event = self._journal.completed(self.system_id, upload, ingestion.source, ingestion.tally, seconds)
        await self._write(self._cursor.past(upload), event)
        self._attempts = 0
        self._outages.passed(self.system_id, akosha=True)
        _log.info(
            "ingest_completed",
            system_id=self.system_id,
            upload_id=upload,
            source=ingestion.source,
            stored=event.stored,
            known=event.known,
            kept_back=event.kept_back,
            duration_seconds=event.duration_seconds,
        )
        return SystemOutcome(ingested=1, tally=ingestion.tally)

    async def _push(self, ingestion: _Ingestion) -> None:
        """Push what Akosha lacks of an upload. Errors that a retry cannot fix are added to the faults."""
        manifest = ingestion.manifest
        todo = plan(manifest, self._cursor)
        if todo.delta or todo.full:
            capabilities, again = await self._ingest.connect(self.system_id)
            if again:
                await self._save(self._cursor.without(again))
                todo = plan(manifest, self._cursor)
            ingestion.source = "memories" if todo.delta else "databases"
            if todo.delta:
                await self._push_memories(ingestion, capabilities, todo.delta)
            for database in sorted(todo.full):
                await self._push_database(ingestion, capabilities, database)
        self._cursor = advance_unchanged(manifest, self._cursor, todo.unchanged)

    async def _push_memories(
        self, ingestion: _Ingestion, capabilities: Capabilities, databases: frozenset[str]
    ) -> None:
        try:
            ingestion.tally += await self._ingest.memories(ingestion.manifest, capabilities, ingestion.turn)
        except (WireError, SnapshotError, StateError) as error:
            if self._should_retry(error):
                raise
            ingestion.faults.append(str(error))
        else:
            await self._save(self._cursor.at(ingestion.manifest, databases))

    async def _push_database(self, ingestion: _Ingestion, capabilities: Capabilities, database: str) -> None:
        """Push a database of the newest upload that has it. An unusable database is downloaded once only."""
        newest = await self._newest(ingestion, database)
        key = newest.agent_id, database
        ingestion.source = "databases"
        fault = ""
        if self._unusable.get(key, ("", ""))[0] == newest.upload_id:
            fault = self._unusable[key][1]
        else:
            try:
                ingestion.tally += await self._ingest.database(newest, database, capabilities, ingestion.turn)
            except (WireError, SnapshotError, StateError) as error:
                if self._should_retry(error):
                    raise
                fault = f"{database}: {error}"
                self._unusable[key] = newest.upload_id, fault
            else:
                await self._save(self._cursor.at(newest, [database]))
        if fault:
            ingestion.faults.append(fault)

    async def _newest(self, ingestion: _Ingestion, database: str) -> Manifest:
        for upload in reversed(ingestion.later):
            try:
                manifest = await self._ingest.manifest(self.system_id, upload)
            except WireError:
                continue  # refused when its turn comes
            if manifest and manifest.agent_id == ingestion.manifest.agent_id and manifest.of(database):
                return manifest
        return ingestion.manifest

    def _should_retry(self, error: AkoshaError) -> bool:
        return isinstance(error, StagingFull) or is_final(error) or (error.transient and self._attempts < TRIES - 1)

    async def _report_delay(self, upload: str, error: AkoshaError) -> None:
        """Record the event of an upload's first failed attempt."""
        if self._reported_upload != upload:
            retry_at = self._clock.now() + target_backoff(self._failures + 1)
            event = self._journal.failed(self.system_id, upload, str(error), retry_at)
            await self._write(self._cursor, event)
            self._reported_upload = upload

    async def _refuse(self, upload: str, reason: str, tally: Tally) -> SystemOutcome:
        """Move past the upload. What it lacks is read from the databases of a newer upload."""
        event = self._journal.failed(self.system_id, upload, reason, None)
        await self._write(self._cursor.past(upload), event)
        self._attempts = 0
        _log.error(
            "ingest_failed",
            system_id=self.system_id,
            upload_id=upload,
            error=reason,
            next_step="the next upload of the system is ingested instead",
        )
        return SystemOutcome(refused=1, refusal=event.error, tally=tally)

    async def _write(self, cursor: Cursor, event: IngestCompleted | IngestFailed) -> None:
        self._cursor = cursor
        await self._journal.write(cursor, event)

    async def _save(self, cursor: Cursor) -> None:
        self._cursor = cursor
        await self._journal.save(self.system_id, cursor)
