"""What the ledger knows of each target and database, and how it may change. Everything of the state machine is here.

    state      step         next       written first
    clean      changed      owed       -
    owed       staged       intent     the intent: request, upload id, digests; before the first PUT
    intent     committed    delivered  delivered parts and the result, in one transaction
    intent     retry        intent     attempts and retry_at
    intent     abandoned    owed       the error
    delivered  confirmed    clean      -
    delivered  changed      owed       - (the result that waits for its confirmation is the outbox's)
    owed       unchanged    clean      the new fingerprint: the bytes are those delivered

Anything else is a fault of ours and raises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from agent.domain.databases import Fingerprint, Survey
from agent.domain.errors import StateError
from agent.domain.manifest import Part


class State(StrEnum):
    """Where one database stands with one target."""

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

    `retry_at` None: not before the files change or somebody asks. `failures` counts in a row.
    """

    reason: str
    fingerprint: Fingerprint
    failures: int
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Intent:
    """An upload that has begun: written before the first PUT, so that a restart knows what may be in the bucket."""

    request_id: str
    upload_id: str
    digests: Mapping[str, str]
    databases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatabaseRecord:
    """One database at one target. `parts` and `fingerprint` are of the state that was delivered last.

    `delivered_by` is the id of the result that told of it: confirmed, that result makes the database clean.
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
        """Say whether the target wants to be left in peace until `retry_at`."""
        return self.retry_at is not None and now < self.retry_at

    def carried(self, database: str) -> bool:
        """Say whether there is a delivered state of the database that an upload can carry over."""
        record = self.databases.get(database)
        return record is not None and bool(record.parts)


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


def next_try(record: TargetRecord) -> datetime | None:
    """Return when something about the target is due by itself: the target, or a database that could not be copied."""
    waiting = (r.problem.retry_at for r in record.databases.values() if r.problem and r.state is State.OWED)
    return min((at for at in (record.retry_at, *waiting) if at is not None), default=None)


def _lacks(record: DatabaseRecord | None, seen: Fingerprint) -> bool:
    return record is None or record.state in (State.OWED, State.INTENT) or record.fingerprint != seen


def _waits(record: DatabaseRecord | None, seen: Fingerprint, now: datetime) -> bool:
    problem = record.problem if record else None
    if problem is None or problem.fingerprint != seen:
        return False
    return problem.retry_at is None or now < problem.retry_at
