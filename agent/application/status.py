"""The state of everything at a glance: who runs, what each target has, what is pending and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.domain.databases import Survey
from agent.domain.states import Problem, State, TargetRecord, next_try, pending, problems


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """One database at one target. `size` in bytes, of all its files now; 0 where it is no longer there."""

    name: str
    state: str
    pending: bool
    size: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target: what it has, when it got it, and what stands in the way."""

    method: str
    endpoint: str
    bucket: str
    databases: tuple[DatabaseStatus, ...]
    newest_upload_id: str | None
    last_success: datetime | None
    failures: int
    next_try: datetime | None
    error: str

    @property
    def pending(self) -> tuple[str, ...]:
        """The databases that the target lacks."""
        return tuple(database.name for database in self.databases if database.pending)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All of it. `pending` names what some target lacks, or, without a target, all there is."""

    system_id: str
    agent_id: str
    route: tuple[str, ...]
    targets: tuple[TargetStatus, ...]
    pending: tuple[str, ...]
    notes: Mapping[str, str]


def describe(
    *,
    system_id: str,
    agent_id: str,
    route: Sequence[str],
    records: Sequence[TargetRecord],
    survey: Survey,
    notes: Mapping[str, str],
) -> Status:
    """Put the ledger's records and the files' present state side by side."""
    targets = tuple(_target(record, survey) for record in records)
    lacking = {name for target in targets for name in target.pending} if targets else set(survey)
    return Status(
        system_id=system_id,
        agent_id=agent_id,
        route=tuple(route),
        targets=targets,
        pending=tuple(sorted(lacking)),
        notes=notes,
    )


def _target(record: TargetRecord, survey: Survey) -> TargetStatus:
    lacking, waiting = pending(record, survey), problems(record, survey)
    databases = []
    for name in sorted({*survey, *record.databases}):
        known = record.databases.get(name)
        databases.append(
            DatabaseStatus(
                name=name,
                state=(known.state if known else State.OWED).value,
                pending=name in lacking,
                size=survey[name].size if name in survey else 0,
                problem=_told(waiting.get(name)),
            )
        )
    return TargetStatus(
        method=record.target.method,
        endpoint=record.target.endpoint,
        bucket=record.target.bucket,
        databases=tuple(databases),
        newest_upload_id=record.newest_upload_id,
        last_success=record.last_success,
        failures=record.failures,
        next_try=next_try(record, survey),
        error=record.error,
    )


def _told(problem: Problem | None) -> str:
    if problem is None:
        return ""
    return f"{problem.reason} ({problem.cure})" if problem.cure else problem.reason
