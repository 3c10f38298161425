"""One attempt at a request: what is asked, what was seen, what came of copying it, and what a manifest says of it."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from agent.domain.databases import NO_DATABASES, Survey, is_requested
from agent.domain.delivery_state import Problem, Target, TargetRecord, due, pending, problems
from agent.domain.errors import SnapshotError
from agent.domain.events import SyncRequested
from agent.domain.manifest import Rows
from agent.domain.routing import URGENT, target_backoff
from agent.ports import Clock, Ledger, Reporter, Snapshot, SnapshotTaker

NOT_ASKED = "it was not asked for"


@dataclass(slots=True)
class Attempt:
    """`same` are copies of what the target has already, `changed` of what it lacks; `problems` could not be copied.

    `abandoned` is the upload that had begun for other bytes: its id is not used again.
    """

    request: SyncRequested
    report: Reporter
    started: float
    survey: Survey = field(default_factory=dict)
    same: dict[str, Snapshot] = field(default_factory=dict)
    changed: dict[str, Snapshot] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    abandoned: str | None = None

    @property
    def urgent(self) -> bool:
        """Whether a person or a session's end caused the request."""
        return self.request.reason in URGENT

    @property
    def asked(self) -> Survey:
        """What was seen of the databases that the request asks for."""
        reflections, graphs = self.request.upload_reflections, self.request.upload_knowledge_graph
        return {
            name: seen
            for name, seen in self.survey.items()
            if is_requested(name, reflections=reflections, knowledge_graph=graphs)
        }

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256, over all that is about to be uploaded."""
        return {file.name: file.sha256 for snapshot in self.changed.values() for file in snapshot.files}

    def carried(self, record: TargetRecord) -> set[str]:
        """Return the databases of which the target has another state than the present one, and will have."""
        current = {*self.changed, *self.same}
        return {
            name
            for name, known in record.databases.items()
            if name not in current and known.fingerprint != self.survey.get(name)
        }

    def rows(self, record: TargetRecord) -> dict[str, Rows]:
        """Return the rows that the upload will have, as far as they were counted."""
        kept = {name: known.rows for name, known in record.databases.items() if known.rows and name not in self.changed}
        return kept | {name: snapshot.rows for name, snapshot in self.changed.items() if snapshot.verified}

    def incomplete(self, record: TargetRecord) -> dict[str, str]:
        """Name what stays owed: what could not be copied, now or before, and what is not asked for."""
        missed = pending(record, self.survey) - {*self.changed, *self.same}
        waiting = {**_reasons(record, self.survey), **{name: p.reason for name, p in self.problems.items()}}
        return {name: waiting.get(name, NOT_ASKED) for name in sorted(missed)}

    def skip_reason(self, record: TargetRecord) -> str:
        """Return why there is nothing to deliver, in words."""
        if not self.survey:
            return NO_DATABASES
        waiting = _reasons(record, self.survey)
        if waiting:
            return "; ".join(f"{name} waits: {reason}" for name, reason in sorted(waiting.items()))
        return "nothing has changed since the last upload"


def _reasons(record: TargetRecord, survey: Survey) -> Mapping[str, str]:
    return {name: problem.reason for name, problem in problems(record, survey).items()}


_log = structlog.get_logger()


class Staging:
    """Makes the copies for one target. What it finds out goes into the attempt; `settle` writes it down.

    `deduplicate`: a database whose files have the digests of those delivered is the same, not changed.
    """

    def __init__(
        self, *, target: Target, taker: SnapshotTaker, ledger: Ledger, clock: Clock, deduplicate: bool
    ) -> None:
        self._target, self._taker, self._ledger, self._clock = target, taker, ledger, clock
        self._deduplicate = deduplicate

    @asynccontextmanager
    async def attempt(self, request: SyncRequested, report: Reporter) -> AsyncIterator[Attempt]:
        """Begin an attempt at a request; when the block ends, however it ends, its copies are removed."""
        attempt = Attempt(request, report, started=self._clock.monotonic())
        try:
            yield attempt
        finally:
            copies = (*attempt.same.values(), *attempt.changed.values())
            await asyncio.shield(asyncio.gather(*(self._taker.discard(copy) for copy in copies)))

    async def copy(self, attempt: Attempt, record: TargetRecord, *, also: Collection[str] = ()) -> bool:
        """Survey, then copy what the target lacks of what is asked and is worth trying now: it is owed from here on.

        Databases of `also` are copied whether they changed or not. False where there is nothing of the kind. A database
        that cannot be copied is among `attempt.problems`.
        """
        attempt.survey = await self._taker.survey()
        asked = attempt.asked
        wanted = due(record, asked, self._clock.now(), urgent=attempt.urgent) | (asked.keys() & {*also})
        if not wanted:
            return False
        await self._ledger.mark_owed(self._target, wanted)
        attempt.report.phase("snapshot", sum(attempt.survey[name].size for name in wanted))
        for database in sorted(wanted):
            await self._copy(database, attempt, record)
        return True

    async def present(self) -> set[str]:
        """Return the databases whose files are on this machine. Raises SnapshotError."""
        return {*await self._taker.survey()}

    async def settle(self, attempt: Attempt) -> None:
        """Write down what the copying has found: unchanged databases are clean, those with a problem stay owed.

        An upload that had begun for other bytes must have been abandoned before.
        """
        if attempt.same:
            await self._ledger.mark_unchanged(self._target, {name: s.fingerprint for name, s in attempt.same.items()})
        if attempt.problems:
            await self._ledger.record_problems(self._target, attempt.problems)

    def fail(self, attempt: Attempt, record: TargetRecord, database: str, error: SnapshotError, *, event: str) -> None:
        """The database cannot be had this time: note why, and when to try again. Said once, not at each try."""
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
            had = {part.name: part.sha256 for part in known.parts} if known else {}
            same = self._deduplicate and had == {file.name: file.sha256 for file in snapshot.files}
            (attempt.same if same else attempt.changed)[database] = snapshot
        attempt.report.moved(seen.size)


def what_is_wrong(problems: Mapping[str, Problem]) -> tuple[str, str]:
    """Return what is wrong with the databases, and the cure: they are at fault, no other method would fare better."""
    messages = (f"{name}: {problem.reason}" for name, problem in sorted(problems.items()))
    cures = dict.fromkeys(problem.hint for problem in problems.values() if problem.hint)
    return "; ".join(messages), "; ".join(cures)
