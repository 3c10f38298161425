"""The status: the running agent, what each target has, what is pending and why."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from agent.application.status_warnings import WEBHOOK_FAILING, clear_warning, warnings_in, without_warnings
from agent.application.sync.bus_recovery import BUS, BUS_SINCE
from agent.application.sync.confirmed_upload import without_confirmations
from agent.application.sync.delivery_probe import ProbeState, without_probes
from agent.domain.databases import Survey
from agent.domain.delivery_state import (
    Problem,
    State,
    Target,
    TargetRecord,
    next_try,
    pending,
    problems,
    waits_for_change,
)
from agent.domain.events import SyncSucceeded, upload_event_id
from agent.domain.identity import is_decided, without_claims
from agent.domain.parsing import parse_json
from agent.domain.progress import Activity
from agent.domain.routing import CLOUD, HTTP, RETRY
from agent.domain.status_warning import StatusWarning
from agent.ports import Ledger, MemoryCounts

DELIVERED_TO_AKOSHA = (
    "delivered means that the server acknowledged them; Akosha up to 0.11 keeps them in its process until it ends, "
    "and its search tools do not read them"
)
"""What a count of delivered memories means. The version that a server reports does not show which case applies."""

VERIFIED = "verified"
"""Key of the ledger note of the last verification."""

WEBHOOKS, OVERDUE = "webhooks", "overdue"
"""Keys of the ledger notes of the webhooks' progress, and of what waits and was announced as overdue."""

MARGIN_BYTES = 16 * 2**20
"""Space needed in addition to the copies: for the ledger, notes and memories.json."""

STATE_DISK_FULL = "state_disk_full"

CHANGE = "change"
"""Reason of a NextSync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """One database at one target. `size` is the present size of its files in bytes, `changed_at` their latest change.

    `delivered`: the target has some state of the database.
    `removed`: the target has the database, but its file is no longer on this machine; then `size` is 0 and `changed_at`
    is null.
    """

    name: str
    state: str
    pending: bool
    size: int
    problem: str = ""
    removed: bool = False
    changed_at: datetime | None = None
    delivered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target: what it has, its last success and error, and the counts of its memories.

    For an Akosha server, `delivered_means` explains the count of delivered memories, and `confirmed_at` is the last
    time at which the server confirmed that it has them. `last_bytes` is the number of bytes that the newest upload
    sent, null if the ledger does not have its result.
    """

    method: str
    endpoint: str
    bucket: str
    databases: tuple[DatabaseStatus, ...]
    newest_upload_id: str | None
    last_success: datetime | None
    failures: int
    next_try: datetime | None
    error: str
    memories: MemoryCounts
    delivered_means: str = ""
    confirmed_at: datetime | None = None
    last_bytes: int | None = None

    @property
    def pending(self) -> tuple[str, ...]:
        """The databases that the target lacks."""
        return tuple(database.name for database in self.databases if database.pending)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStatus:
    """The bus in use. `text`: the NATS server, `in this process` and why, or `waiting` and for what.

    `consumers` is the number of consumers of the stream, at most an hour old. It is null if events stay in the process,
    or the server does not permit to examine the stream.
    """

    text: str
    since: datetime | None
    consumers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextSync:
    """The next sync that the agent makes by itself, of what is pending.

    `reason`: `quiet` (waits until the files are quiet), `deadline` (they are not, and it waits no longer),
    `min_interval` (time between two syncs), `retry` (a target failed), or, with `at` null, `session_end` (changes alone
    cause no sync) or `change` (what is pending could not be delivered as it is).
    """

    at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyStatus:
    """The last verification of the agent's newest upload. `problems` by object; none if the upload is complete.

    `manual`: the command `verify` made it. `databases` are those in the upload, empty if they are unknown; `damaged`
    are those that the next upload has to send again.
    """

    upload_id: str
    at: datetime
    problems: Mapping[str, str]
    whole: bool
    manual: bool = False
    databases: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], target: Target) -> Self | None:
        """Return the verification in the ledger's notes, None if there was none yet of an upload in this target."""
        try:
            note = parse_json(notes[VERIFIED])
            if note["target"] != target.id:
                return None
            problems = {str(name): str(problem) for name, problem in note["problems"].items()}
            at = datetime.fromisoformat(note["at"])
            return cls(
                upload_id=str(note["upload_id"]),
                at=at,
                problems=problems,
                whole=not problems,
                manual=note.get("manual") is True,
                databases=tuple(map(str, note.get("databases", ()))),
                damaged=tuple(map(str, note.get("damaged", ()))),
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return None

    def note(self, target: Target) -> str:
        """Return the verification as a note for `from_notes`."""
        return json.dumps(
            {
                "target": target.id,
                "upload_id": self.upload_id,
                "at": self.at.isoformat(),
                "problems": dict(self.problems),
                "manual": self.manual,
                "databases": self.databases,
                "damaged": self.damaged,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The complete status. `pending` names the databases that the first target of the route lacks, even if another
    method has delivered them.

    `bus` is None if no agent runs. `results_waiting` counts results that no bus has confirmed yet. `verified` is the
    last verification of its newest upload in the target of the settings. `warnings` are lasting conditions that need a
    user's action.
    """

    system_id: str
    agent_id: str
    route: tuple[str, ...]
    targets: tuple[TargetStatus, ...]
    pending: tuple[str, ...]
    notes: Mapping[str, str]
    bus: BusStatus | None = None
    results_waiting: int = 0
    verified: VerifyStatus | None = None
    warnings: tuple[StatusWarning, ...] = ()
    system_id_undecided: bool = False
    """The system ID is the host name, and the cloud target may still make this machine take another one."""
    activity: Activity | None = None
    """The sync that is running; null if none is, or if the agent does not answer."""
    next_sync: NextSync | None = None
    """Null if nothing is pending, or if it is unknown."""
    unhealthy: Mapping[str, str] = field(default_factory=dict)
    """Components of the agent that are stuck or interrupted, with the reason."""


def describe(
    *,
    system_id: str,
    agent_id: str,
    route: Sequence[str],
    records: Sequence[TargetRecord],
    memory_counts: Mapping[str, MemoryCounts],
    survey: Survey,
    notes: Mapping[str, str],
    results_waiting: int,
    running: bool,
    warnings: Sequence[StatusWarning] = (),
    default_system_id: bool = False,
    last_bytes: Mapping[str, int] | None = None,
    activity: Activity | None = None,
    next_sync: NextSync | None = None,
    unhealthy: Mapping[str, str] | None = None,
    consumers: int | None = None,
) -> Status:
    """Make the status from the ledger's records and the present state of the files.

    `records` are in the order of the route, `memory_counts` and `last_bytes` are by method. A fallback that was never
    used is left out, unless the first target fails and it failed too. `running`: an agent runs and keeps the notes up
    to date. `warnings` were computed for this status; those in the notes are appended.
    """
    cloud = next((record for record in records if record.target.method == CLOUD), None)
    undecided = default_system_id and cloud is not None and not cloud.known and not is_decided(notes, system_id)
    failing = bool(records and records[0].error)
    used = [record for at, record in enumerate(records) if at == 0 or record.databases or (failing and record.error)]
    targets = tuple(
        _target(
            record,
            survey,
            memory_counts.get(record.target.method, MemoryCounts()),
            notes,
            (last_bytes or {}).get(record.target.method),
        )
        for record in used
    )
    lacking = targets[0].pending if targets else tuple(sorted(survey))
    retry_at = targets[0].next_try if targets else None
    if lacking and retry_at is not None and (next_sync is None or next_sync.at is None or retry_at < next_sync.at):
        next_sync = NextSync(at=retry_at, reason=RETRY)
    if next_sync is None and records and waits_for_change(records[0], survey):
        next_sync = NextSync(at=None, reason=CHANGE)
    return Status(
        system_id=system_id,
        agent_id=agent_id,
        route=tuple(route),
        targets=targets,
        pending=lacking,
        notes=_without_webhooks(without_claims(without_confirmations(without_probes(without_warnings(notes))))),
        bus=_bus(notes, consumers) if running else None,
        results_waiting=results_waiting,
        verified=VerifyStatus.from_notes(notes, cloud.target) if cloud else None,
        warnings=(*warnings, *warnings_in(notes)),
        system_id_undecided=undecided,
        activity=activity,
        next_sync=next_sync if running and lacking else None,
        unhealthy=unhealthy or {},
    )


async def last_upload_bytes(ledger: Ledger, records: Sequence[TargetRecord], agent_id: str) -> Mapping[str, int]:
    """Return how many bytes the newest upload of each method sent, if the ledger has its result. Raises StateError."""
    found: dict[str, int] = {}
    for record in records:
        if record.newest_upload_id:
            ids = {upload_event_id(record.newest_upload_id, agent_id)}
        else:
            ids = {known.delivered_by for known in record.databases.values() if known.delivered_by}
        results = [await ledger.find_event(event_id) for event_id in ids]
        newest = max((r for r in results if isinstance(r, SyncSucceeded)), key=lambda r: r.time, default=None)
        if newest is not None:
            found[record.target.method] = newest.bytes_transferred
    return found


async def forget_webhooks(ledger: Ledger, loops: Collection[str]) -> None:
    """Remove what earlier settings left in the ledger. Raises StateError.

    Without `loops`, the names of the loops of webhooks, this is all of webhooks; without the loop `overdue`, what it
    announced.
    """
    notes = await ledger.notes()
    if OVERDUE not in loops and notes.get(OVERDUE):
        await ledger.note(OVERDUE, "")
    if loops:
        return
    if notes.get(WEBHOOKS):
        await ledger.note(WEBHOOKS, "")
    await clear_warning(ledger, WEBHOOK_FAILING)


def _without_webhooks(notes: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in notes.items() if key not in (WEBHOOKS, OVERDUE)}


def _bus(notes: Mapping[str, str], consumers: int | None) -> BusStatus | None:
    """Return the bus in the notes, without the prefix `nats: ` or `memory: `: the rest shows which one it is."""
    text = notes.get(BUS)
    if text is None:
        return None
    for name in ("nats", "memory"):
        text = text.removeprefix(f"{name}: ")
    since = notes.get(BUS_SINCE)
    return BusStatus(text=text, since=datetime.fromisoformat(since) if since else None, consumers=consumers)


def _target(
    record: TargetRecord,
    survey: Survey,
    memories: MemoryCounts,
    notes: Mapping[str, str],
    last_bytes: int | None,
) -> TargetStatus:
    kept = ProbeState.from_notes(notes, record.target)
    lacking, waiting = pending(record, survey), problems(record, survey)
    databases = []
    for name in sorted({*survey, *record.databases}):
        known = record.databases.get(name)
        if name not in survey and known and not known.was_delivered:
            continue  # nobody has it any more
        databases.append(
            DatabaseStatus(
                name=name,
                state=(known.state if known else State.OWED).value,
                pending=name in lacking,
                size=survey[name].size if name in survey else 0,
                problem=_described(waiting.get(name)),
                removed=name not in survey,
                changed_at=survey[name].changed_at if name in survey else None,
                delivered=known is not None and known.was_delivered,
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
        memories=memories,
        delivered_means=DELIVERED_TO_AKOSHA if record.target.method == HTTP else "",
        confirmed_at=kept.answered if kept else None,
        last_bytes=last_bytes,
    )


def _described(problem: Problem | None) -> str:
    if problem is None:
        return ""
    return f"{problem.reason} ({problem.hint})" if problem.hint else problem.reason


def disk_warning(
    directory: str, free_bytes: int | None, records: Sequence[TargetRecord], survey: Survey
) -> StatusWarning | None:
    """Return a warning if the state directory's disk is too full for a sync, else None, also if that is unknown.

    Computed for each status: on a full disk the ledger cannot store a warning. A sync copies all databases that its
    first target lacks, and keeps the copies until it ends.
    """
    lacking = pending(records[0], survey) if records else frozenset[str]()
    needed = MARGIN_BYTES + sum(survey[name].size for name in lacking if name in survey)
    if free_bytes is None or free_bytes >= needed:
        return None
    return StatusWarning(
        code=STATE_DISK_FULL,
        message=f"the disk of {directory} is full: a sync needs {needed:,} bytes there, {free_bytes:,} are free",
        hint="free disk space there, or set akosha_agent_state_dir to a directory on a larger disk",
    )
