"""What the ledger knows of each target and database, and how it may change. Everything of the state machine is here.

    state      step         next       written first
    clean      changed      owed       -
    owed       staged       intent     the intent: request, upload id, digests; before the first PUT
    intent     committed    delivered  what was delivered (parts, memories) and the result, in one transaction
    intent     retry        intent     attempts and retry_at
    intent     abandoned    owed       the error; given up, the intent itself stays, to go on under its id
    delivered  confirmed    clean      -
    delivered  changed      owed       - (the result that waits for its confirmation is the outbox's)
    owed       unchanged    clean      the new fingerprint: the bytes are those delivered

Anything else is a fault of ours and raises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agent.domain.databases import Fingerprint, Survey
from agent.domain.errors import StateError
from agent.domain.manifest import Part
from agent.domain.routing import LAST_TARGET_BACKOFF


class State(StrEnum):
    """State of one database at one target."""

    CLEAN = "clean"
    OWED = "owed"
    INTENT = "intent"
    DELIVERED = "delivered"


class Move(StrEnum):
    """What can happen to it."""

    CHANGED = "changed"
    STAGED = "staged"
    COMMITTED = "committed"
    RETRY = "retry"
    ABANDONED = "abandoned"
    CONFIRMED = "confirmed"
    UNCHANGED = "unchanged"


TRANSITIONS: Mapping[tuple[State, Move], State] = {
    (State.CLEAN, Move.CHANGED): State.OWED,
    (State.OWED, Move.CHANGED): State.OWED,
    (State.OWED, Move.STAGED): State.INTENT,
    (State.OWED, Move.UNCHANGED): State.CLEAN,
    (State.INTENT, Move.CHANGED): State.INTENT,
    (State.INTENT, Move.COMMITTED): State.DELIVERED,
    (State.INTENT, Move.RETRY): State.INTENT,
    (State.INTENT, Move.ABANDONED): State.OWED,
    (State.DELIVERED, Move.CONFIRMED): State.CLEAN,
    (State.DELIVERED, Move.CHANGED): State.OWED,
}


def after(state: State, move: Move) -> State:
    """Return the state that follows. Raises StateError for a move that the table does not have."""
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        raise StateError(f"a database that is {state} cannot be {move}") from None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a method delivers. Each target has its own state; success on one never clears another."""

    method: str
    endpoint: str
    bucket: str
    system_id: str

    @property
    def id(self) -> str:
        """The target in one text, for the ledger and for people."""
        return f"{self.method} {self.endpoint or 'aws'} {self.bucket or '-'} {self.system_id}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a database could not be copied: what was seen of it then, and when to try again.

    `retry_at` None: not before the files change or somebody asks. `failures` counts in a row. `hint` may name places
    on this machine, so it stays here; `reason` travels with manifests and results.
    """

    reason: str
    fingerprint: Fingerprint
    failures: int
    retry_at: datetime | None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """An upload that has begun: written before the first PUT, so that a restart knows what may be in the bucket.

    Where memories are handed over instead, there is no upload: `upload_id` is the request's id.
    """

    request_id: str
    upload_id: str
    digests: Mapping[str, str]
    databases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatabaseRecord:
    """One database at one target. `parts` and `fingerprint` are of the state that was delivered last.

    A target to which memories are handed over has no parts.
    `delivered_by` is the id of the result that reports it: confirmed, that result makes the database clean.
    """

    database: str
    state: State
    fingerprint: Fingerprint | None = None
    parts: tuple[Part, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    problem: Problem | None = None
    delivered_by: str = ""


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """All that the ledger knows of one target.

    `attempts` counts the tries of the request in hand (`attempt_request`), `failures` the requests that failed in a
    row; `retry_at` is when the next try of either kind is due. `known` is false until an upload to the target has begun
    or one of its uploads was adopted: a ledger that was lost, or has only heard that something is owed, knows nothing
    of what the bucket has.
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
        """Say whether the target is backing off until `retry_at`."""
        return _ahead(self.retry_at, now)


def active_methods(route: Sequence[str], records: Mapping[str, TargetRecord]) -> tuple[str, ...]:
    """Return the methods of the route whose targets matter now: each up to the first that does not fail.

    Those after it replace none: what they lack is not missed.
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


def due(record: TargetRecord, survey: Survey, now: datetime, *, urgent: bool) -> frozenset[str]:
    """Return the pending databases worth trying now: one whose copying failed waits for a change or its time.

    `urgent` (a person or a session's end asks) tries all.
    """
    return frozenset(
        name for name in pending(record, survey) if urgent or not _waits(record.databases.get(name), survey[name], now)
    )


def problems(record: TargetRecord, survey: Survey) -> dict[str, Problem]:
    """Return why databases wait that could not be copied. One that is no longer there waits for nothing."""
    owed = {name: known for name, known in record.databases.items() if known.state is State.OWED and name in survey}
    return {name: known.problem for name, known in owed.items() if known.problem}


def next_try(record: TargetRecord, survey: Survey) -> datetime | None:
    """Return when something about the target is due by itself: the target, or a database that could not be copied."""
    waiting = (problem.retry_at for problem in problems(record, survey).values())
    return min((at for at in (record.retry_at, *waiting) if at is not None), default=None)


def _lacks(record: DatabaseRecord | None, seen: Fingerprint) -> bool:
    return record is None or record.state in (State.OWED, State.INTENT) or record.fingerprint != seen


def _waits(record: DatabaseRecord | None, seen: Fingerprint, now: datetime) -> bool:
    problem = record.problem if record else None
    if problem is None or problem.fingerprint != seen:
        return False
    return problem.retry_at is None or _ahead(problem.retry_at, now)


def _ahead(at: datetime | None, now: datetime) -> bool:
    """Say whether a time is still to come. One further ahead than any back-off is of a clock that went back since."""
    return at is not None and now < at <= now + LAST_TARGET_BACKOFF
