"""Merges what the sources know of one system, and judges it. Pure: no I/O, no clock.

The bucket shows the newest upload and the agent's version; NATS shows results, failures, verifications and ingestion.
Either may be missing. Times of events and uploads are the clock of the system. An event counts at the latest with the
time at which the server stored it; an upload whose time is in the future is no result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agent.application.fleet.bucket import BucketFacts
from agent.application.fleet.events import SystemEvents, is_success
from agent.domain.events import (
    IngestCompleted,
    IngestFailed,
    SyncFailed,
    SyncResult,
    SyncSkipped,
    SyncSucceeded,
    UploadVerified,
)
from agent.domain.naming import MAX_CLOCK_SKEW, is_upload_id, upload_time
from agent.domain.plain_text import printable, problem_list, shorten

LONGEST_TEXT = 300
"""Characters that are kept of a text of a system."""


class Condition(StrEnum):
    """The condition of a system, the worst first."""

    DAMAGED = "damaged"
    FAILING = "failing"
    OVERDUE = "overdue"
    UNKNOWN = "unknown"
    FINE = "fine"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastResult:
    """The newest result: `succeeded`, `skipped` or `failed`; `text` is the upload, the reason or the error."""

    outcome: str
    time: datetime
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingestion:
    """How far Akosha has the uploads: `upload_id` is the newest one that was ingested, None if none is known.

    `behind_seconds`: time between that upload and the newest one; 0 if Akosha has the newest one, None if unknown.
    `error`: why a later upload is not ingested, else "".
    """

    upload_id: str | None
    behind_seconds: float | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSystem:
    """One system. `reason` says why its condition is not fine; "" if it is. Unknown values are None or empty.

    `last_success`: when the newest upload, or push to Akosha, was complete. `failures`: syncs that have failed since
    the last one that did not, as far as NATS goes back, and `failing_since` the time of the first of them.
    `stored_bytes`: size of the newest upload. `sources`: where the system was found. `problems`: what cannot be read.
    """

    system_id: str
    condition: Condition
    reason: str
    host: str
    agent_version: str
    last_success: datetime | None
    last_result: LastResult | None
    failures: int | None
    failing_since: datetime | None
    newest_upload: str | None
    stored_bytes: int | None
    ingestion: Ingestion | None
    sources: tuple[str, ...]
    problems: tuple[str, ...]


BUCKET, NATS = "bucket", "nats"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the sources know of a system. `ingested` is the upload in the cursor of this machine's `react`."""

    system_id: str
    bucket: BucketFacts
    events: SystemEvents
    ingested: str | None
    now: datetime
    overdue: timedelta

    @property
    def results(self) -> list[LastResult]:
        """The newest result of each kind, the newest first. Of results at the same time, a failure is the last one.

        A manifest of a clock that is ahead is none, since nothing says when it was uploaded. Neither is a skipped sync
        for another reason than that there was nothing to send.
        """
        found = []
        upload, skipped = self.bucket.newest, self.events.of(SyncSkipped)
        if upload is not None and not self._is_ahead(upload.uploaded_at):
            found.append(_result("succeeded", self._past(upload.uploaded_at), upload.upload_id))
        for kind, outcome in ((SyncSucceeded, "succeeded"), (SyncSkipped, "skipped"), (SyncFailed, "failed")):
            event, at = self.events.of(kind), self.events.at(kind)
            if event is not None and at is not None and (event is not skipped or is_success(skipped)):
                found.append(_result(outcome, self._past(at), _text(event)))
        return sorted(found, key=lambda one: (one.time, one.outcome == "failed"), reverse=True)

    @property
    def last_success(self) -> datetime | None:
        return next((one.time for one in self.results if one.outcome == "succeeded"), None)

    @property
    def newest_upload(self) -> str | None:
        succeeded = self.events.of(SyncSucceeded)
        ids = [self.bucket.newest.upload_id] if self.bucket.newest else []
        return max([*ids, *self._uploads(succeeded.upload_id if succeeded else None)], default=None)

    @property
    def ingestion(self) -> Ingestion | None:
        completed, failed = self.events.of(IngestCompleted), self.events.of(IngestFailed)
        ingested = max([*self._uploads(completed.upload_id if completed else None, self.ingested)], default=None)
        error = ""
        if failed is not None and self._uploads(failed.upload_id):
            is_newer = completed is None or failed.upload_id > completed.upload_id
            error = _shown(failed.error) if is_newer else ""
        if ingested is None and not error:
            return None
        behind: float | None = None
        if ingested is not None and self.newest_upload is not None:
            behind = max((upload_time(self.newest_upload) - upload_time(ingested)).total_seconds(), 0.0)
        return Ingestion(upload_id=ingested, behind_seconds=behind, error=error)

    @property
    def clock_ahead(self) -> datetime | None:
        """The time of the newest upload or result that is ahead of the other clocks; None if none is."""
        upload, times = self.bucket.newest, list[datetime]()
        if upload is not None and self._is_ahead(upload.uploaded_at):
            times.append(upload.uploaded_at)
        for entry in self.events.newest.values():
            if entry.event is not None and entry.event.time - entry.stored_at > MAX_CLOCK_SKEW:
                times.append(entry.event.time)
        return max(times, default=None)

    def _is_ahead(self, at: datetime) -> bool:
        return at - self.now > MAX_CLOCK_SKEW

    def _past(self, at: datetime) -> datetime:
        return min(at, self.now)

    def _uploads(self, *texts: str | None) -> list[str]:
        """Return those that are upload IDs of this system: events and cursors may have any text."""
        return [text for text in texts if text and is_upload_id(text, self.system_id)]


def merged(
    system_id: str,
    bucket: BucketFacts | None,
    events: SystemEvents | None,
    *,
    ingested: str | None = None,
    now: datetime,
    overdue: timedelta,
) -> FleetSystem:
    """Return what is known of a system. None: the source does not know it, or was not read.

    `overdue`: a system without a result, or a successful one, for longer than this is overdue.
    """
    facts = _Facts(
        system_id=system_id,
        bucket=bucket or BucketFacts(),
        events=events or SystemEvents(),
        ingested=ingested,
        now=now,
        overdue=overdue,
    )
    condition, reason = next(
        ((condition, text) for condition, describe in ROWS if (text := describe(facts))), (Condition.FINE, "")
    )
    upload, failing = facts.bucket.newest, facts.events.is_failing and _is_failing(facts)
    return FleetSystem(
        system_id=system_id,
        condition=condition,
        reason=_shown(reason),
        host=facts.bucket.host,
        agent_version=_shown(upload.agent_version) if upload else "",
        last_success=facts.last_success,
        last_result=next(iter(facts.results), None),
        failures=None if events is None else facts.events.failures if failing else 0,
        failing_since=facts.events.failing_since if failing else None,
        newest_upload=facts.newest_upload,
        stored_bytes=upload.stored_bytes if upload and upload.upload_id == facts.newest_upload else None,
        ingestion=facts.ingestion,
        sources=(*((BUCKET,) if bucket else ()), *((NATS,) if events else ())),
        problems=tuple(_shown(text) for text in _problems(facts)),
    )


def by_severity(systems: Sequence[FleetSystem]) -> list[FleetSystem]:
    """Return the systems, the worst condition first, then by ID."""
    order = list(Condition)
    return sorted(systems, key=lambda one: (order.index(one.condition), one.system_id))


def _result(outcome: str, time: datetime, text: str) -> LastResult:
    return LastResult(outcome=outcome, time=time, text=_shown(text))


def _shown(text: str) -> str:
    return shorten(printable(text), LONGEST_TEXT)


def _text(event: SyncResult) -> str:
    if isinstance(event, SyncSucceeded):
        return event.upload_id or event.location
    if isinstance(event, SyncSkipped):
        return event.why
    errors = event.errors if isinstance(event, SyncFailed) else ()
    return "; ".join(f"{each.method}: {each.error}" for each in errors) or event.error or "no reason was given"


def _problems(facts: _Facts) -> list[str]:
    found = [*facts.bucket.problems, *facts.events.problems]
    if (at := facts.clock_ahead) is not None:
        found.append(f"its clock is or was ahead: {at:%Y-%m-%d %H:%M} UTC")
    return found


def _damaged(facts: _Facts) -> str:
    verified = facts.events.of(UploadVerified)
    if verified is None or verified.whole or verified.upload_id != facts.newest_upload:
        return ""
    return f"the newest upload, {verified.upload_id}, is damaged: {problem_list(verified.problems)}"


def _is_failing(facts: _Facts) -> bool:
    return bool(facts.results) and facts.results[0].outcome == "failed"


def _failing(facts: _Facts) -> str:
    return f"sync fails: {facts.results[0].text}" if _is_failing(facts) else ""


def _incomplete(facts: _Facts) -> str:
    upload, succeeded = facts.bucket.newest, facts.events.of(SyncSucceeded)
    found = upload.incomplete if upload is not None and upload.upload_id == facts.newest_upload else {}
    if not found and succeeded is not None and (succeeded.upload_id or None) == facts.newest_upload:
        found = succeeded.incomplete
    return f"not everything was uploaded: {problem_list(found)}" if found else ""


def _ingestion_fails(facts: _Facts) -> str:
    ingestion = facts.ingestion
    return f"ingestion fails: {ingestion.error}" if ingestion is not None and ingestion.error else ""


def _overdue(facts: _Facts) -> str:
    hours = facts.overdue.total_seconds() / 3600
    if facts.results:
        late = facts.now - facts.results[0].time > facts.overdue
        return f"no result for more than {hours:g} h" if late else ""
    claimed, upload = facts.bucket.claimed_at, facts.bucket.newest
    late = upload is None and claimed is not None and facts.now - claimed > facts.overdue
    return f"set up more than {hours:g} h ago, and no complete upload yet" if late else ""


def _unknown(facts: _Facts) -> str:
    problems = _problems(facts)
    if problems:
        return "; ".join(problems[:2])
    if facts.results:
        return ""
    skipped = facts.events.of(SyncSkipped)
    return f"sync was skipped: {skipped.why}" if skipped is not None else "no upload and no result yet"


ROWS: Sequence[tuple[Condition, Callable[[_Facts], str]]] = (
    (Condition.DAMAGED, _damaged),
    (Condition.FAILING, _failing),
    (Condition.FAILING, _incomplete),
    (Condition.FAILING, _ingestion_fails),
    (Condition.OVERDUE, _overdue),
    (Condition.UNKNOWN, _unknown),
)
"""The conditions, the worst first. Each returns a sentence, or "" if it does not apply."""
