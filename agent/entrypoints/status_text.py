"""The text of `status`: the verdict, what happens now and next, and the facts."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from agent.application.monitoring.status import CHANGE, DatabaseStatus, TargetStatus, VerifyStatus
from agent.bootstrap.home import RUN
from agent.domain.delivery_state import State
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.plain_text import printable, problem_list
from agent.domain.progress import Activity
from agent.domain.routing import CLOUD, CLOUD_HINT, HTTP
from agent.entrypoints.formatting import (
    age,
    columns,
    duration,
    error_lines,
    human_bytes,
    local_time,
    phase_name,
    progress_parts,
    waits,
)
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_verdict import Severity
from agent.entrypoints.text_lines import Line, Style, labelled
from agent.ports import MemoryCounts

STYLES = {
    Severity.DAMAGED: Style.BAD,
    Severity.FAILING: Style.BAD,
    Severity.OWED: Style.WARNING,
    Severity.UNKNOWN: Style.WARNING,
    Severity.SAFE: Style.GOOD,
}

REASONS = {
    "quiet": "because the files are still changing",
    "deadline": "because the files keep changing",
    "min_interval": "because of the minimum interval",
    "retry": "because the last attempt failed",
}
SYNC_NOW = "akosha-agent sync does it now"

WATCHERS = {"linux": "inotify", "darwin": "FSEvents"}
"""The interface of the system that the watcher uses, by platform."""

LABEL = 11
"""Width of the labels of the facts, and of a target's facts with their indentation less 4."""


def status_lines(
    status: StatusDocument,
    *,
    locations: dict[str, str],
    over_nats: bool,
    other_id: str = "",
    now: datetime | None = None,
) -> list[Line]:
    """Return the text of a status, unwrapped, without control characters.

    `locations` are the targets' locations by method. `over_nats`: results are published over NATS. `other_id`: the
    system ID that the first upload takes if another machine uses the default one, "" if that is decided.
    """
    now = now or datetime.now(UTC)
    lines = [verdict_line(status, now), Line("")]
    lines += _now_and_next(status, now)
    lines += _facts(status, other_id, now, over_nats=over_nats)
    for target in status.targets:
        lines += [Line(""), *_target(status, target, locations[target.method], now)]
    return [line.map(printable) for line in lines]


def verdict_line(status: StatusDocument, now: datetime) -> Line:
    """Return the verdict as of now, in its colour."""
    verdict = status.judged(now).verdict
    assert verdict is not None
    return Line(verdict.text, STYLES[verdict.severity])


def activity_text(activity: Activity) -> str:
    """Return a running sync: what it does, percent, bytes, rate and remaining time, as far as they are known.

    >>> activity_text(Activity(request_id="r", method="cloud", phase="upload", done_bytes=5 * 10**6,
    ...     total_bytes=2 * 10**7, bytes_per_second=1e6, remaining_seconds=15))
    'uploading: 25 %, 5.0 MB of 20.0 MB, 1.0 MB/s, 15 s left'
    """
    parts = progress_parts(
        activity.done_bytes, activity.total_bytes, activity.bytes_per_second, activity.remaining_seconds
    )
    phase = phase_name(activity.phase)
    return f"{phase}: {', '.join(parts.values())}" if parts else phase


def _now_and_next(status: StatusDocument, now: datetime) -> Iterator[Line]:
    if status.activity is not None:
        yield _fact("now", f"{activity_text(status.activity)}, to {_name(status.activity.method)}")
    yield _fact("pending", status.problem or ", ".join(status.pending) or "nothing")
    if upcoming := _next_sync(status, now):
        yield _fact("next sync", upcoming)
    for warning in status.warnings:
        yield _fact("warning", str(warning), Style.WARNING)
    for name, reason in sorted(status.unhealthy.items()):
        yield _fact("unhealthy", f"{name}: {reason}", Style.BAD)
    if not status.targets:
        yield _fact("target", f"none: {CLOUD_HINT}", Style.BAD)


def _next_sync(status: StatusDocument, now: datetime) -> str:
    """Return when the agent syncs next, and why not now; "" if that goes without saying."""
    if not status.sync_enabled:
        return "none: sync is disabled (akosha_sync_enabled is false)"
    if not _agent_runs(status):
        return "none, because no agent is running (akosha-agent sync does it now)" if status.pending else ""
    if status.unresponsive_agent:
        return "unknown, because the agent does not report its status" if status.pending else ""
    upcoming = status.next_sync
    if not status.pending or status.problem:
        return "when a database changes or a session ends" if not status.problem else ""
    if upcoming is None:
        return f"within a minute or two ({SYNC_NOW})" if status.activity is None else ""
    if upcoming.reason == CHANGE:
        return f"when its files change, because it cannot be delivered as it is ({SYNC_NOW})"
    if upcoming.at is None:
        return f"when a session ends, because akosha_agent_upload_on_change is false ({SYNC_NOW})"
    seconds = (upcoming.at - now).total_seconds()
    when = f"in {duration(seconds)}" if seconds >= 1 else "now"
    return f"{when}, {REASONS.get(upcoming.reason, upcoming.reason)}; {SYNC_NOW}" if seconds >= 1 else when


def _facts(status: StatusDocument, other_id: str, now: datetime, *, over_nats: bool) -> Iterator[Line]:
    watcher = status.notes.get("watcher") if status.running else None
    yield _fact("agent", _agent(status))
    yield _fact(
        "system",
        status.system_id + (f"  (may become {other_id} if another machine already uses this name)" if other_id else ""),
    )
    yield _fact("databases", status.data_dir)
    if watcher:
        yield _fact("watching", WATCHERS.get(sys.platform, watcher) if watcher == "native" else watcher)
    if status.bus:
        since = status.bus.since
        yield _fact("bus", status.bus.text + (f"  (since {local_time(since)}, {age(since, now)})" if since else ""))
    if over_nats and status.results_waiting:
        yield _fact("results", f"{status.results_waiting} {waits(status.results_waiting)} to be published")
    newest = next((one.newest_upload_id for one in status.targets if one.method == CLOUD), None)
    if status.verified:
        style = Style.PLAIN if status.verified.whole else Style.BAD
        later = f"; {newest} is not verified yet" if newest and newest != status.verified.upload_id else ""
        yield _fact("verified", _verified(status.verified, now) + later, style)
    elif newest:
        yield _fact("verified", "never")


def _fact(label: str, text: str, style: Style = Style.PLAIN) -> Line:
    return labelled(label, text, LABEL, style)


def _target(status: StatusDocument, target: TargetStatus, location: str, now: datetime) -> Iterator[Line]:
    def fact(label: str, text: str, style: Style = Style.PLAIN) -> Line:
        return labelled(f"  {label}", text, LABEL + 4, style)

    yield Line(f"{target.method}  {location}", bold=len(target.method))
    yield fact("last push" if target.method == HTTP else "last upload", _last_delivery(target, now))
    if memories := counted_memories(target.memories):
        yield fact("memories", memories)
    if target.memories.delivered and target.delivered_means:
        yield fact("", target.delivered_means)
    if target.confirmed_at:
        yield fact("confirmed", f"{CONFIRMED}  ({age(target.confirmed_at, now)})")
    if target.error:
        message, *hint = error_lines("", target.error)
        yield fact("last error", message, Style.BAD)
        for line in hint:
            yield fact("", line.strip())
    if target.next_try:
        yield fact("next try", _next_try(status, target.next_try, now))
    rows = [(one.name, _state(one), "" if one.removed else human_bytes(one.size)) for one in target.databases]
    for one, row in zip(target.databases, columns(rows) if rows else (), strict=True):
        yield Line(f"  {row}", Style.WARNING if one.pending else Style.PLAIN)
        if one.problem:
            yield labelled("", one.problem, 4, Style.BAD)


def _state(database: DatabaseStatus) -> str:
    """Return the state of a database at a target."""
    if database.pending:
        return "pending"
    if not database.removed:
        return "up to date"
    if database.state in (State.CLEAN, State.DELIVERED):
        return "removed here, kept in the last upload"
    return "removed here before its last changes were uploaded"


def _name(method: str) -> str:
    return {CLOUD: "the cloud", HTTP: "Akosha"}.get(method, method)


def _agent_runs(status: StatusDocument) -> bool:
    return status.running is not None and status.running.get("command") == RUN


def _agent(status: StatusDocument) -> str:
    if status.running is None:
        return "not running (to start it: akosha-agent run)"
    return status.unresponsive_agent or f"running (pid {status.running.get('pid')}, {status.running.get('command')})"


def _next_try(status: StatusDocument, at: datetime, now: datetime) -> str:
    """Return the time of the next attempt. Only a running agent makes one by itself."""
    if not _agent_runs(status):
        return "none, because no agent is running (akosha-agent sync tries now)"
    return f"{local_time(at)}, in {duration((at - now).total_seconds())}" if at > now else "now"


def _last_delivery(target: TargetStatus, now: datetime) -> str:
    if target.last_success is None:
        return "never"
    size = "" if target.last_bytes is None else f", {human_bytes(target.last_bytes)} sent"
    return f"{target.newest_upload_id or local_time(target.last_success)}  ({age(target.last_success, now)}{size})"


def _verified(last: VerifyStatus, now: datetime) -> str:
    """Return the result of the last verification of the newest upload."""
    if last.whole:
        return f"{last.upload_id} is intact  ({age(last.at, now)})"
    return f"{last.upload_id} is DAMAGED  ({age(last.at, now)}): {problem_list(last.problems)}"


def counted_memories(memories: MemoryCounts) -> str:
    """Return how many memories the target has, and how many it lacks; "" if there are none."""
    counts = [f"{memories.delivered:,} delivered"] if memories.delivered else []
    counts += [
        f"{count:,} {waits(count)}: {reason}" + (f" ({EMBEDDING_HINT})" if reason == NO_EMBEDDING else "")
        for reason, count in sorted(memories.waiting.items())
    ]
    if memories.refused:
        counts.append(f"{sum(memories.refused.values()):,} were refused: akosha-agent memories --failed shows them")
    return "; ".join(counts)
