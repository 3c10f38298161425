"""Sentences for people about events and log entries, as `run` on a terminal, `sync` and the demo print them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from agent.application.monitoring.status import DatabaseStatus
from agent.domain.events import (
    DeliveryOverdue,
    DeliveryRecovered,
    Event,
    IngestCompleted,
    IngestFailed,
    SyncFailed,
    SyncRequested,
    SyncResult,
    SyncSkipped,
    SyncSucceeded,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.routing import CLOUD, FILE_CHANGE, MANUAL, REMOTE, RETRY, SESSION_END, STARTUP
from agent.entrypoints.formatting import (
    error_lines,
    error_message,
    human_bytes,
    ingest_summary,
    local_time,
    overdue_summary,
    prune_summary,
    sync_lines,
    verify_summary,
)
from agent.entrypoints.text_lines import Line, Style

CAUSES: Mapping[str, str] = {
    FILE_CHANGE: "the databases have changed",
    SESSION_END: "a session has ended",
    STARTUP: "databases have changed since the last sync",
    MANUAL: "a sync was requested",
    REMOTE: "a sync was requested over NATS",
    RETRY: "another attempt",
}
"""Reasons of requests."""


def event_lines(event: Event, pending: Sequence[DatabaseStatus] = ()) -> list[Line]:
    """Return what happened, one line a fact; nothing for an event of another kind. Control characters are not escaped.

    `pending` are the databases that the target lacks, as far as that is known: a request's line names them. Without
    any, the sync looks for changes. A retry is
    not reported when it begins: an unavailable target is retried for hours.
    """
    if isinstance(event, SyncRequested):
        if event.reason == RETRY:
            return []
        named = ", ".join(f"{one.name} ({human_bytes(one.size)})" for one in pending)
        verb = "uploading" if event.route[0] == CLOUD else "sending"
        what = f"{verb} {named}" if pending else "looking for changes"
        return [Line(f"{CAUSES.get(event.reason, event.reason)}: {what}")]
    if isinstance(event, SyncSucceeded):
        first, *others = sync_lines(event)
        lacks = event.incomplete or event.repairs or event.unreadable
        return [Line(_delivered(event, first), Style.WARNING if lacks else Style.GOOD), *_all(others, Style.WARNING)]
    if isinstance(event, SyncSkipped):
        return [Line(event.why)]
    if isinstance(event, SyncFailed):
        lines = sync_lines(event) if event.errors else error_lines("", event.error or "failed")
        again = [f"next attempt at {local_time(event.retry_at, '%H:%M:%S')}"] if event.retry_at else []
        return [*_all(lines, Style.BAD), *map(Line, again)]
    if isinstance(event, UploadVerified):
        return [Line(verify_summary(event), Style.PLAIN if event.whole else Style.BAD)]
    if isinstance(event, UploadsPruned):
        return [Line(prune_summary(event), Style.WARNING if event.error else Style.PLAIN)]
    if isinstance(event, IngestCompleted | IngestFailed):
        return [Line(ingest_summary(event))]
    if isinstance(event, DeliveryOverdue | DeliveryRecovered):
        style = Style.BAD if isinstance(event, DeliveryOverdue) else Style.WARNING if event.removed else Style.GOOD
        return [Line(overdue_summary(event), style)]
    assert not isinstance(event, SyncResult), event.type
    return []


def log_lines(name: str, level: str, fields: Mapping[str, object]) -> list[Line]:
    """Return a log entry as sentences: chosen ones of level info, and all warnings and errors.

    Entries that repeat an event are left out.
    """
    if name in REPEATED:
        return []
    if describe := SENTENCES.get(name):
        return [Line(describe(fields), Style.WARNING if level != "info" else Style.PLAIN)]
    if level in ("info", "debug"):
        return []
    style = Style.WARNING if level == "warning" else Style.BAD
    causes = [str(fields[key]) for key in ("error", "reason", "errors", "warning") if fields.get(key)]
    text = ": ".join([name.replace("_", " "), *dict.fromkeys(causes)])
    others = [f"{key.replace('_', ' ')} {value}" for key, value in fields.items() if _is_shown(key, value)]
    text += f" ({', '.join(others)})" if others else ""
    hints = [str(fields[key]) for key in ("hint", "next_step") if fields.get(key)]
    trace = str(fields.get("exception") or "").splitlines()
    return [Line(text, style), *[Line(f"  {one}") for one in (*hints, *trace)]]


REPEATED = frozenset({"sync_failed", "newest_upload_damaged", "delivery_overdue", "delivery_recovered"})
"""Log entries of a level above info that report the same as an event."""

SENTENCES: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "agent_stopped": lambda _: "stopped",
    "settings_changed": lambda entry: f"settings have changed: {_list(entry.get('keys'))}",
    "settings_unchanged": lambda entry: f"settings have not changed; {entry.get('next_step')}",
    "sync_retry_scheduled": lambda entry: (
        f"attempt {entry.get('attempt')} failed, the next one is in {entry.get('delay_seconds')} s: "
        f"{error_message(str(entry.get('error')))}"
    ),
    "sync_forwarded": lambda entry: (
        f"{entry.get('method')} failed, trying {entry.get('to')}: {error_message(str(entry.get('error')))}"
    ),
    "bus_unavailable": lambda entry: f"events wait: {entry.get('detail')}",
    "target_claimed": lambda entry: f"{entry.get('location')} now holds the uploads of {entry.get('system_id')}",
    "settings": lambda entry: str(entry.get("warning")),
    "health_recovered": lambda entry: f"{entry.get('component')} works again",
}
"""Sentences of log entries, by event."""

_KEPT_IN_LOGS = frozenset({"request_id", "system_id", "agent_id", "id", "transient", "event", "level", "timestamp"})
"""Keys for programs."""


def _delivered(event: SyncSucceeded, summary: str) -> str:
    if not event.manifest_key:
        return f"sent {summary}"
    rows = f"{event.memories:,} new or changed memories as " if event.memories else ""
    return f"uploaded {rows}{summary}"


def _is_shown(key: str, value: object) -> bool:
    used = ("error", "reason", "errors", "warning", "hint", "next_step", "exception", "logger")
    return key not in _KEPT_IN_LOGS and key not in used and value not in (None, "", [], {})


def _list(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _all(lines: list[str], style: Style) -> list[Line]:
    return [Line(line, Style.PLAIN if line.startswith("  ") else style) for line in chain(lines)]
