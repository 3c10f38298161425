"""One attempt at a request: the databases to deliver, their copies, and their problems."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from agent.domain.databases import NO_DATABASES, Survey, is_requested
from agent.domain.delivery_state import (
    CopyUse,
    Problem,
    Target,
    TargetRecord,
    due,
    pending,
    problems,
    removed_while_owed,
    use_of_copy,
)
from agent.domain.errors import DamagedCopy, SnapshotError
from agent.domain.events import CHANGES_LOST, NO_CHANGE, SyncRequested
from agent.domain.manifest import Rows
from agent.domain.routing import ASKED, STARTUP, URGENT, target_backoff
from agent.ports import Clock, Ledger, Reporter, Snapshot, SnapshotTaker

REMOVED_HINT = "akosha-agent restore gets the state that the target keeps"
NOT_REQUESTED = "the request does not include it"

_log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """One attempt. `same`: copies of databases that the target has already. `changed`: copies of those that it lacks.

    `problems`: databases that could not be copied. `unchecked`: those of `changed` that are unverified or without their
    memories, because the process that checks or reads the copy failed; they stay owed after the upload. `repeated`:
    those of `changed` whose bytes the target has already, but incomplete in that way.
    `abandoned`: ID of an unfinished upload of other bytes, which is not used again. `manifest_damaged`: the store did
    not keep the manifest of the unfinished upload as it was put. `repairs`: ID of the newest upload,
    if it is damaged and its databases are sent again. `bytes_sent`: stored bytes that this machine sent, also those of
    a copy that turned out to be damaged.
    """

    request: SyncRequested
    report: Reporter
    started: float
    survey: Survey = field(default_factory=dict)
    same: dict[str, Snapshot] = field(default_factory=dict)
    changed: dict[str, Snapshot] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    unchecked: dict[str, Problem] = field(default_factory=dict)
    abandoned: str | None = None
    manifest_damaged: bool = False
    repairs: str = ""
    bytes_sent: int = 0

    def add_sent(self, count: int) -> None:
        """Count stored bytes as sent."""
        self.bytes_sent += count

    @property
    def urgent(self) -> bool:
        """Whether a person or a session's end caused the request."""
        return self.request.reason in URGENT

    @property
    def requested(self) -> Survey:
        """The survey of the databases that the request includes."""
        reflections, graphs = self.request.upload_reflections, self.request.upload_knowledge_graph
        return {
            name: seen
            for name, seen in self.survey.items()
            if is_requested(name, reflections=reflections, knowledge_graph=graphs)
        }

    def due(self, record: TargetRecord, now: datetime) -> frozenset[str]:
        """Return the requested databases to try now."""
        at_start = self.request.reason == STARTUP
        return due(record, self.requested, now, urgent=self.urgent, at_start=at_start)

    @property
    def is_futile(self) -> bool:
        """Whether the target has the bytes of each database, and an upload would leave all of them incomplete."""
        return self.changed.keys() == self.repeated & self.unchecked.keys()

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256, of all files to upload."""
        return {file.name: file.sha256 for snapshot in self.changed.values() for file in snapshot.files}

    def carried(self, record: TargetRecord) -> set[str]:
        """Return the databases that changed and are not in this upload: it carries over the target's earlier state."""
        current = {*self.changed, *self.same}
        return {
            name
            for name, known in record.databases.items()
            if name not in current and known.fingerprint != self.survey.get(name)
        }

    def rows(self, record: TargetRecord) -> dict[str, Rows]:
        """Return the row counts of the upload's databases that were counted."""
        kept = {name: known.rows for name, known in record.databases.items() if known.rows and name not in self.changed}
        return kept | {name: snapshot.rows for name, snapshot in self.changed.items() if snapshot.verified}

    def incomplete(self, record: TargetRecord) -> dict[str, str]:
        """Return the databases that stay owed, with the reason.

        They could not be copied, verified or read, or were not requested.
        """
        missed = pending(record, self.survey) - {*self.changed, *self.same} | self.unchecked.keys()
        found = {name: problem.reason for name, problem in (self.problems | self.unchecked).items()}
        waiting = {**_reasons(record, self.survey), **found}
        return {name: waiting.get(name, NOT_REQUESTED) for name in sorted(missed)}

    def skip_reason(self, record: TargetRecord) -> str:
        """Describe why there is nothing to deliver."""
        return skip_reason(record, self.survey)


def skip_reason(record: TargetRecord, survey: Survey) -> str:
    """Describe why there is nothing to deliver."""
    if not survey:
        return NO_DATABASES
    waiting = _reasons(record, survey)
    if waiting:
        return "; ".join(f"{name} waits: {reason}" for name, reason in sorted(waiting.items()))
    incomplete = removed_while_owed(record, survey)
    kept = {name for name, known in record.databases.items() if known.was_delivered} - survey.keys()
    texts = (  # the first one counts most: an event keeps only the beginning of a long reason
        (f"{CHANGES_LOST}, the target keeps an earlier state", incomplete),
        ("removed from this machine, kept in the target", kept - incomplete.keys()),
    )
    return "; ".join([NO_CHANGE, *(f"{text}: {', '.join(sorted(names))}" for text, names in texts if names)])


def _reasons(record: TargetRecord, survey: Survey) -> Mapping[str, str]:
    return {name: problem.reason for name, problem in problems(record, survey).items()}


class Staging:
    """Makes the copies for one target. The results go into the attempt; `settle` writes them to the ledger.

    `deduplicate`: a database whose files have the digests that were delivered counts as the same. `verify_later`: other
    copies are verified by `verify`, so that they can be sent meanwhile.
    """

    def __init__(
        self,
        *,
        target: Target,
        taker: SnapshotTaker,
        ledger: Ledger,
        clock: Clock,
        deduplicate: bool,
        verify_later: bool = False,
    ) -> None:
        self._target, self._taker, self._ledger, self._clock = target, taker, ledger, clock
        self._deduplicate, self._verify_later = deduplicate, verify_later

    @asynccontextmanager
    async def attempt(self, request: SyncRequested, report: Reporter) -> AsyncIterator[Attempt]:
        """Start an attempt at a request. Its copies are removed when the block ends."""
        attempt = Attempt(request, report, started=self._clock.monotonic())
        try:
            yield attempt
        finally:
            copies = (*attempt.same.values(), *attempt.changed.values())
            await asyncio.shield(asyncio.gather(*(self._taker.discard(copy) for copy in copies)))

    async def lacks(self, attempt: Attempt, record: TargetRecord) -> frozenset[str]:
        """Survey, and return the requested databases that the target lacks and that are due."""
        attempt.survey = await self._taker.survey()
        return attempt.due(record, self._clock.now())

    async def copy(self, attempt: Attempt, record: TargetRecord, *, also: Collection[str] = ()) -> bool:
        """Survey, then copy the requested databases that the target lacks and that are due. They are owed from now on.

        Databases of `also` are copied even if unchanged. Returns False if there is nothing to copy. A database that
        cannot be copied is added to `attempt.problems`.
        """
        if not (to_copy := await self.lacks(attempt, record) | (attempt.requested.keys() & {*also})):
            return False
        await self._ledger.mark_owed(self._target, to_copy)
        attempt.report.phase("snapshot", sum(attempt.survey[name].size for name in to_copy))
        for database in sorted(to_copy):
            await self._copy(database, attempt, record)
        return True

    async def skip_reason(self, attempt: Attempt, record: TargetRecord) -> str:
        """Describe why there is nothing to deliver.

        A database that was removed before its last changes were uploaded is owed until a person's request reports it.
        """
        removed = removed_while_owed(record, attempt.survey)
        if attempt.survey and removed and attempt.request.reason in ASKED:
            _log.warning("changes_lost", names=sorted(removed), hint=REMOVED_HINT)
            if record.intent is not None:  # of these databases only: all others are delivered
                await self._ledger.abandon(self._target)
            await self._ledger.mark_unchanged(self._target, removed)
        return attempt.skip_reason(record)

    async def present(self) -> set[str]:
        """Return the databases whose files are on this machine. Raises SnapshotError."""
        return {*await self._taker.survey()}

    async def settle(self, attempt: Attempt) -> None:
        """Record the results of the copies: unchanged databases are clean, those with a problem stay owed.

        An unfinished upload of other bytes must have been abandoned before.
        """
        if attempt.same:
            await self._ledger.mark_unchanged(
                self._target, {name: copy.fingerprint for name, copy in attempt.same.items()}
            )
        if attempt.problems:
            await self._ledger.record_problems(self._target, attempt.problems)

    def problem(
        self, attempt: Attempt, record: TargetRecord, database: str, error: SnapshotError, *, event: str
    ) -> Problem:
        """Return why a database could not be copied or read, and when to try again. Warn once for each reason."""
        known = record.databases.get(database)
        before = known.problem if known else None
        failures = before.failures + 1 if before else 1
        retry_at = self._clock.now() + target_backoff(failures) if error.transient else None
        log = _log.debug if before and before.reason == error.message and not attempt.urgent else _log.warning
        log(event, database=database, transient=error.transient, error=str(error))
        return Problem(
            error.message,
            attempt.survey[database],
            failures,
            retry_at,
            hint=error.hint,
            incomplete=before is not None and before.incomplete,
        )

    def owe_unchecked(self, attempt: Attempt, record: TargetRecord, errors: Mapping[str, SnapshotError]) -> None:
        """Owe the databases of this upload that are incomplete because of a transient error."""
        for database, error in errors.items():
            if error.transient:
                copy = attempt.changed[database]
                attempt.unchecked[database] = self._unchecked(attempt, record, copy, error)

    def _unchecked(self, attempt: Attempt, record: TargetRecord, copy: Snapshot, error: SnapshotError) -> Problem:
        uploaded = SnapshotError(f"uploaded, but {error.message}", hint=error.hint, transient=True)
        problem = self.problem(attempt, record, copy.database, uploaded, event="upload_incomplete")
        return replace(problem, fingerprint=copy.fingerprint, incomplete=True)

    async def verify(self, attempt: Attempt) -> None:
        """Verify the copies that are not. Raises DamagedCopy: `retake` replaces the copy."""
        for database, copy in sorted(attempt.changed.items()):
            if not copy.checked:
                attempt.changed[database] = await self._taker.verify(copy)

    async def retake(self, attempt: Attempt, record: TargetRecord, database: str) -> None:
        """Replace a copy that looks damaged by one that is verified. Nothing may read the old one any more."""
        await self._taker.discard(attempt.changed.pop(database))
        try:
            copy = await self._taker.take(database)
        except SnapshotError as error:
            attempt.problems[database] = self.problem(attempt, record, database, error, event="snapshot_failed")
        else:
            await self._use(copy, attempt, record)

    async def _copy(self, database: str, attempt: Attempt, record: TargetRecord) -> None:
        try:
            copy = await self._take(database, record)
        except SnapshotError as error:
            attempt.problems[database] = self.problem(attempt, record, database, error, event="snapshot_failed")
        else:
            await self._use(copy, attempt, record)
        attempt.report.moved(attempt.survey[database].size)

    async def _take(self, database: str, record: TargetRecord) -> Snapshot:
        """Copy a database. If the target has its bytes already, their use depends on the verification."""
        if not self._verify_later:
            return await self._taker.take(database)
        copy = await self._taker.copy(database)
        if self._use_of(copy, record) is CopyUse.SEND:
            return copy
        try:
            return await self._taker.verify(copy)
        except DamagedCopy:
            await self._taker.discard(copy)
            return await self._taker.take(database)

    async def _use(self, copy: Snapshot, attempt: Attempt, record: TargetRecord) -> None:
        database, use = copy.database, self._use_of(copy, record)
        if use is CopyUse.WAIT:
            attempt.problems[database] = self._unchecked(attempt, record, copy, copy.check_error())
            await self._taker.discard(copy)
        elif use is CopyUse.SAME:
            attempt.same[database] = copy
        else:
            attempt.changed[database] = copy
            attempt.repeated |= {database} if use is CopyUse.REPEAT else set()

    def _use_of(self, copy: Snapshot, record: TargetRecord) -> CopyUse:
        known, digests = record.databases.get(copy.database), {file.name: file.sha256 for file in copy.files}
        return use_of_copy(known, digests, inconclusive=copy.inconclusive, deduplicate=self._deduplicate)


def describe_problems(problems: Mapping[str, Problem]) -> tuple[str, str]:
    """Return a message and a hint. The cause is in the databases: another method would fail as well."""
    messages = (f"{name}: {problem.reason}" for name, problem in sorted(problems.items()))
    hints = dict.fromkeys(problem.hint for problem in problems.values() if problem.hint)
    return "; ".join(messages), "; ".join(hints)
