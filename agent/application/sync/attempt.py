"""One attempt at a request: the databases to deliver, their copies, and their problems."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from agent.domain.databases import NO_DATABASES, Survey, is_requested
from agent.domain.delivery_state import NO_CHANGE, Problem, Target, TargetRecord, due, pending, problems
from agent.domain.errors import SnapshotError
from agent.domain.events import SyncRequested
from agent.domain.manifest import Rows
from agent.domain.routing import URGENT, target_backoff
from agent.ports import Clock, Ledger, Reporter, Snapshot, SnapshotTaker

NOT_REQUESTED = "the request does not include it"

_log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """One attempt. `same`: copies of databases that the target has already. `changed`: copies of those that it lacks.

    `problems`: databases that could not be copied. `abandoned`: ID of an unfinished upload of other bytes, which is not
    used again. `repairs`: ID of the newest upload, if it is damaged and its databases are sent again.
    """

    request: SyncRequested
    report: Reporter
    started: float
    survey: Survey = field(default_factory=dict)
    same: dict[str, Snapshot] = field(default_factory=dict)
    changed: dict[str, Snapshot] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    abandoned: str | None = None
    repairs: str = ""

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
        """Return the databases that stay owed, with the reason: they could not be copied, or were not requested."""
        missed = pending(record, self.survey) - {*self.changed, *self.same}
        waiting = {**_reasons(record, self.survey), **{name: problem.reason for name, problem in self.problems.items()}}
        return {name: waiting.get(name, NOT_REQUESTED) for name in sorted(missed)}

    def skip_reason(self, record: TargetRecord) -> str:
        """Describe why there is nothing to deliver."""
        if not self.survey:
            return NO_DATABASES
        waiting = _reasons(record, self.survey)
        if waiting:
            return "; ".join(f"{name} waits: {reason}" for name, reason in sorted(waiting.items()))
        return NO_CHANGE


def _reasons(record: TargetRecord, survey: Survey) -> Mapping[str, str]:
    return {name: problem.reason for name, problem in problems(record, survey).items()}


class Staging:
    """Makes the copies for one target. The results go into the attempt; `settle` writes them to the ledger.

    `deduplicate`: a database whose files have the digests that were delivered counts as the same.
    """

    def __init__(
        self, *, target: Target, taker: SnapshotTaker, ledger: Ledger, clock: Clock, deduplicate: bool
    ) -> None:
        self._target, self._taker, self._ledger, self._clock = target, taker, ledger, clock
        self._deduplicate = deduplicate

    @asynccontextmanager
    async def attempt(self, request: SyncRequested, report: Reporter) -> AsyncIterator[Attempt]:
        """Start an attempt at a request. Its copies are removed when the block ends."""
        attempt = Attempt(request, report, started=self._clock.monotonic())
        try:
            yield attempt
        finally:
            copies = (*attempt.same.values(), *attempt.changed.values())
            await asyncio.shield(asyncio.gather(*(self._taker.discard(copy) for copy in copies)))

    async def copy(self, attempt: Attempt, record: TargetRecord, *, also: Collection[str] = ()) -> bool:
        """Survey, then copy the requested databases that the target lacks and that are due. They are owed from now on.

        Databases of `also` are copied even if unchanged. Returns False if there is nothing to copy. A database that
        cannot be copied is added to `attempt.problems`.
        """
        attempt.survey = await self._taker.survey()
        requested = attempt.requested
        to_copy = due(record, requested, self._clock.now(), urgent=attempt.urgent) | (requested.keys() & {*also})
        if not to_copy:
            return False
        await self._ledger.mark_owed(self._target, to_copy)
        attempt.report.phase("snapshot", sum(attempt.survey[name].size for name in to_copy))
        for database in sorted(to_copy):
            await self._copy(database, attempt, record)
        return True

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

    def fail(self, attempt: Attempt, record: TargetRecord, database: str, error: SnapshotError, *, event: str) -> None:
        """Record why a database could not be copied or read, and when to try again. Warn once for each reason."""
        known = record.databases.get(database)
        before = known.problem if known else None
        failures = before.failures + 1 if before else 1
        retry_at = self._clock.now() + target_backoff(failures) if error.transient else None
        attempt.problems[database] = Problem(
            error.message, attempt.survey[database], failures, retry_at, hint=error.hint
        )
        log = _log.debug if before and before.reason == error.message and not attempt.urgent else _log.warning
        log(event, database=database, transient=error.transient, error=str(error))

    async def _copy(self, database: str, attempt: Attempt, record: TargetRecord) -> None:
        known, seen = record.databases.get(database), attempt.survey[database]
        try:
            snapshot = await self._taker.take(database)
        except SnapshotError as error:
            self.fail(attempt, record, database, error, event="snapshot_failed")
        else:
            delivered = {part.name: part.sha256 for part in known.parts} if known else {}
            same = self._deduplicate and delivered == {file.name: file.sha256 for file in snapshot.files}
            (attempt.same if same else attempt.changed)[database] = snapshot
        attempt.report.moved(seen.size)


def describe_problems(problems: Mapping[str, Problem]) -> tuple[str, str]:
    """Return a message and a hint. The cause is in the databases: another method would fail as well."""
    messages = (f"{name}: {problem.reason}" for name, problem in sorted(problems.items()))
    hints = dict.fromkeys(problem.hint for problem in problems.values() if problem.hint)
    return "; ".join(messages), "; ".join(hints)
