"""The ledger's records of targets and databases, and the state machine of a database at a target.

    state      step         next       written with it
    clean      changed      owed       -
    owed       changed      owed       -
    owed       staged       intent     the intent: request, upload ID, digests; before the first PUT
    owed       unchanged    clean      the new fingerprint: the bytes are those delivered
    intent     changed      intent     -
    intent     committed    delivered  what was delivered (parts, memories) and the result, in one transaction
    intent     retry        intent     attempts and retry_at
    intent     abandoned    owed       `abandon`: the intent is cleared
                                       `give_up`: the error; the intent is kept, so that the next request can resume
    delivered  confirmed    clean      -
    delivered  changed      owed       - (the outbox keeps the result that is not confirmed yet)

`begin` of the upload in progress, with other digests or more databases, replaces the intent.
`mark_unchanged` also accepts a database that is clean or delivered, and records its fingerprint.
Any other transition is a bug in the agent and raises StateError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agent.domain.databases import Fingerprint, Survey
from agent.domain.errors import StateError
from agent.domain.routing import LAST_TARGET_BACKOFF
from agent.domain.upload_parts import Part


class State(StrEnum):
    """State of one database at one target."""

    CLEAN = "clean"
    OWED = "owed"
    INTENT = "intent"
    DELIVERED = "delivered"


class Transition(StrEnum):
    """An event that changes the state of a database."""

    CHANGED = "changed"
    STAGED = "staged"
    COMMITTED = "committed"
    RETRY = "retry"
    ABANDONED = "abandoned"
    CONFIRMED = "confirmed"
    UNCHANGED = "unchanged"


TRANSITIONS: Mapping[tuple[State, Transition], State] = {
    (State.CLEAN, Transition.CHANGED): State.OWED,
    (State.OWED, Transition.CHANGED): State.OWED,
    (State.OWED, Transition.STAGED): State.INTENT,
    (State.OWED, Transition.UNCHANGED): State.CLEAN,
    (State.INTENT, Transition.CHANGED): State.INTENT,
    (State.INTENT, Transition.COMMITTED): State.DELIVERED,
    (State.INTENT, Transition.RETRY): State.INTENT,
    (State.INTENT, Transition.ABANDONED): State.OWED,
    (State.DELIVERED, Transition.CONFIRMED): State.CLEAN,
    (State.DELIVERED, Transition.CHANGED): State.OWED,
}


def next_state(state: State, transition: Transition) -> State:
    """Return the state after a transition. Raises StateError if the table does not have it."""
    try:
        return TRANSITIONS[state, transition]
    except KeyError:
        raise StateError(f"a database in state {state} cannot be {transition}") from None


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of a method. Each target has its own state; success on one never clears another."""

    method: str
    endpoint: str
    bucket: str
    system_id: str

    @property
    def id(self) -> str:
        """The target as one string, for the ledger and for people."""
        return f"{self.method} {self.endpoint or 'aws'} {self.bucket or '-'} {self.system_id}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a database could not be copied, its fingerprint at that time, and when to try again.

    `retry_at` is None if the agent waits until the files change or a sync is requested. `failures` counts consecutive
    ones. `hint` may contain paths of this machine, so it is not sent; `reason` is part of manifests and results.
    `incomplete`: the target has the database, but unverified or without its memories, because the process that checks
    or reads the copy failed. It is uploaded again when that process succeeds.
    """

    reason: str
    fingerprint: Fingerprint
    failures: int
    retry_at: datetime | None
    hint: str = ""
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """A started upload. Written before the first PUT, so that a restart knows what may be in the bucket.

    A delivery of memories makes no upload: then `upload_id` is the request's ID.
    """

    request_id: str
    upload_id: str
    digests: Mapping[str, str]
    databases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatabaseRecord:
    """One database at one target. `parts` and `fingerprint` are those of the last delivered state.

    A target that receives memories instead of files has no parts. `delivered_by` is the ID of the result that reports
    the delivery: its confirmation makes the database clean.
    """

    database: str
    state: State
    fingerprint: Fingerprint | None = None
    parts: tuple[Part, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    problem: Problem | None = None
    delivered_by: str = ""

    @property
    def was_delivered(self) -> bool:
        """Whether the target has some state of the database."""
        return self.fingerprint is not None


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """The ledger's record of one target.

    `attempts` counts the attempts of the current request (`attempt_request`), `failures` the consecutive failed
    requests; `retry_at` is when the next attempt or request is due. `known` is false until an upload to the target was
    started or one of its uploads was adopted: a new ledger, or one that only marked databases as owed, does not know
    what the bucket contains.
    """

    target: Target
    known: bool = False
    databases: Mapping[str, DatabaseRecord] = field(default_factory=dict)
    intent: Intent | None = None
    attempts: int = 0
    failures: int = 0
    retry_at: datetime | None = None
    error: str = ""
    newest_upload_id: str | None = None
    last_success: datetime | None = None
    attempt_request: str = ""

    def backing_off(self, now: datetime) -> bool:
        """Return whether the target is backing off until `retry_at`."""
        return _ahead(self.retry_at, now)


class CopyUse(StrEnum):
    """What an attempt does with a copy.

    `same`: the target has these bytes. `repeat`: it has them, but incomplete, and this copy is checked: send it again.
    `wait`: it has them incomplete, and this check failed as well: check again later, and send nothing.
    """

    SEND = "send"
    SAME = "same"
    REPEAT = "repeat"
    WAIT = "wait"


def use_of_copy(
    known: DatabaseRecord | None, digests: Mapping[str, str], *, inconclusive: bool, deduplicate: bool
) -> CopyUse:
    """Return what to do with a copy whose files have these digests. `inconclusive`: its verification failed itself."""
    if known is None or {part.name: part.sha256 for part in known.parts} != digests:
        return CopyUse.SEND
    if known.problem and known.problem.incomplete:
        return CopyUse.WAIT if inconclusive else CopyUse.REPEAT
    return CopyUse.SAME if deduplicate else CopyUse.SEND


def active_methods(route: Sequence[str], records: Mapping[str, TargetRecord]) -> tuple[str, ...]:
    """Return the methods of the route up to and including the first whose target does not fail.

    The methods after it are not used, so what their targets lack is not pending.
    """
    found: list[str] = []
    for method in route:
        if method in records:
            found.append(method)
            if not records[method].failures:
                break
    return tuple(found)


def pending(record: TargetRecord, survey: Survey) -> frozenset[str]:
    """Return the databases that the target lacks: never delivered, changed since, or owed."""
    return frozenset(name for name, seen in survey.items() if _lacks(record.databases.get(name), seen))


def removed_while_owed(record: TargetRecord, survey: Survey) -> dict[str, Fingerprint]:
    """Return the databases whose files were removed before their last changes were delivered.

    The fingerprints are those of the states that the target keeps.
    """
    return {
        name: known.fingerprint
        for name, known in record.databases.items()
        if name not in survey and known.state in (State.OWED, State.INTENT) and known.fingerprint is not None
    }


def due(record: TargetRecord, survey: Survey, now: datetime, *, urgent: bool, at_start: bool = False) -> frozenset[str]:
    """Return the pending databases to try now: one that could not be copied waits for a change or its retry time.

    `urgent` (requested by a person or a session's end) returns all, `at_start` those with a retry time.
    """
    return frozenset(
        name
        for name in pending(record, survey)
        if urgent or not _waits(record.databases.get(name), survey[name], now, at_start=at_start)
    )


def problems(record: TargetRecord, survey: Survey) -> dict[str, Problem]:
    """Return the problems of the owed databases that could not be copied, without those that were removed."""
    owed = {name: known for name, known in record.databases.items() if known.state is State.OWED and name in survey}
    return {name: known.problem for name, known in owed.items() if known.problem}


def next_try(record: TargetRecord, survey: Survey) -> datetime | None:
    """Return when the next retry is due: of the target if that failed, else of a database that could not be copied."""
    if record.retry_at is not None:  # until then, nothing is sent to the target
        return record.retry_at
    waiting = (problem.retry_at for problem in problems(record, survey).values())
    return min((at for at in waiting if at is not None), default=None)


def waits_for_change(record: TargetRecord, survey: Survey) -> bool:
    """Return whether all that is pending could not be copied, and is not tried again before it changes."""
    found = [_present_problem(record.databases.get(name), survey[name]) for name in pending(record, survey)]
    return bool(found) and all(problem is not None and problem.retry_at is None for problem in found)


def _lacks(record: DatabaseRecord | None, seen: Fingerprint) -> bool:
    return record is None or record.state in (State.OWED, State.INTENT) or record.fingerprint != seen


def _waits(record: DatabaseRecord | None, seen: Fingerprint, now: datetime, *, at_start: bool) -> bool:
    problem = _present_problem(record, seen)
    if problem is None:
        return False
    return problem.retry_at is None or (not at_start and _ahead(problem.retry_at, now))


def _present_problem(record: DatabaseRecord | None, seen: Fingerprint) -> Problem | None:
    """Return the problem of a database if its files have not changed since."""
    problem = record.problem if record else None
    return problem if problem is not None and problem.fingerprint == seen else None


def _ahead(at: datetime | None, now: datetime) -> bool:
    """Return whether a time is in the future.

    A time later than the longest back-off means that the clock was set back since; it counts as past.
    """
    return at is not None and now < at <= now + LAST_TARGET_BACKOFF
