"""The history and the plots of the page, from the ledger's history."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.application.monitoring.agent_service import AgentService
from agent.domain.events import (
    DeliveryOverdue,
    DeliveryRecovered,
    Event,
    IngestCompleted,
    IngestFailed,
    SyncFailed,
    SyncResult,
    SyncSkipped,
    SyncSucceeded,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.plain_text import printable
from agent.entrypoints.formatting import SEE_STATUS, hint_of_text
from agent.entrypoints.page.documents import HistoryItem, HistoryPage, Outcome, PlotPoint, Plots
from agent.entrypoints.sentences import event_lines
from agent.ports import HistoryEntry

PLOTTED = timedelta(days=30)
MOST_PLOTTED = 400

_SHOWN: Collection[type[Event]] = (
    SyncSucceeded, SyncFailed, SyncSkipped, UploadVerified, UploadsPruned, IngestCompleted, IngestFailed,
    DeliveryOverdue, DeliveryRecovered,
)  # fmt: skip
_TYPES: Mapping[Outcome, Collection[type[Event]]] = {
    "succeeded": (SyncSucceeded,),
    "failed": (SyncFailed, IngestFailed, UploadVerified, UploadsPruned, DeliveryOverdue),
    "skipped": (SyncSkipped,),
    "other": (IngestCompleted, UploadVerified, UploadsPruned, DeliveryRecovered),
}
"""The events that can have an outcome."""


async def read_history(
    agent_service: AgentService, *, before: int | None, limit: int, outcome: Outcome | None
) -> HistoryPage:
    """Return the newest `limit` results before a position (None: all), of one outcome or of any. Raises StateError."""
    wanted = _SHOWN if outcome is None else _TYPES[outcome]
    found: list[HistoryEntry] = []
    while len(found) <= limit:  # one more than is shown, to know whether there are more
        batch = await agent_service.past_events(before=before, limit=limit + 1, types=wanted)
        found += [entry for entry in batch if outcome is None or _outcome(entry.event) == outcome]
        if len(batch) <= limit:
            break
        before = batch[-1].position
    shown = found[:limit]
    return HistoryPage(
        entries=[_item(entry) for entry in shown], next=shown[-1].position if len(found) > limit else None
    )


async def read_plots(agent_service: AgentService, now: datetime) -> Plots:
    """Return the results of the last 30 days that the plots show. Raises StateError."""
    newest = await agent_service.past_events(before=None, limit=MOST_PLOTTED, types=(SyncSucceeded, SyncFailed))
    since = now - PLOTTED
    results = [entry.event for entry in reversed(newest) if entry.event.time >= since]
    if len(results) == MOST_PLOTTED:
        since = results[0].time
    return Plots(results=[_point(result) for result in results if isinstance(result, SyncResult)], since=_text(since))


def _point(result: SyncResult) -> PlotPoint:
    return PlotPoint(
        time=_text(result.time),
        success=result.success,
        bytes=result.bytes_transferred,
        duration_seconds=result.duration_seconds,
        database_bytes=result.database_bytes if isinstance(result, SyncSucceeded) else 0,
    )


def _item(entry: HistoryEntry) -> HistoryItem:
    event, retry_at = entry.event, None
    if isinstance(event, SyncFailed | IngestFailed) and event.retry_at:  # the page shows it in the browser's time zone
        retry_at, event = _text(event.retry_at), replace(event, retry_at=None)
    title, *others = [printable(line.text) for line in event_lines(event)]
    result = event if isinstance(event, SyncResult) else None
    upload_id = getattr(event, "upload_id", None)
    return HistoryItem(
        position=entry.position,
        time=_text(event.time),
        type=event.type,
        outcome=_outcome(event),
        title=title,
        detail="\n".join(line for line in others if not _is_hint(line)),
        hint=printable(_hint(event, others)),
        method=result.method if result else "",
        bytes=result.bytes_transferred if result else event.bytes_freed if isinstance(event, UploadsPruned) else 0,
        duration_seconds=getattr(event, "duration_seconds", 0.0),
        upload_id=upload_id,
        request_id=result.request_id if result else None,
        retry_at=retry_at,
    )


def _outcome(event: Event) -> Outcome:
    if isinstance(event, SyncSucceeded):
        return "succeeded"
    if isinstance(event, SyncSkipped):
        return "skipped"
    failed = (
        isinstance(event, SyncFailed | IngestFailed | DeliveryOverdue)
        or (isinstance(event, UploadVerified) and not event.whole)
        or (isinstance(event, UploadsPruned) and event.error is not None)
    )
    return "failed" if failed else "other"


def _hint(event: Event, lines: Sequence[str]) -> str:
    """Return the cures below the errors of a sync, or the one in the error of another event."""
    if hints := dict.fromkeys(line.strip() for line in lines if _is_hint(line)):
        return "; ".join(hints)
    if isinstance(event, IngestFailed | UploadsPruned) and event.error:
        return hint_of_text(event.error)
    return SEE_STATUS if isinstance(event, SyncFailed) else ""


def _is_hint(line: str) -> bool:
    return line.startswith("  ")  # as `formatting.error_lines` writes it


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
