"""Text for terminals and logs: one-line summaries of results, sizes, times, and hints."""

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.domain.errors import AkoshaError, SettingsError
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
from agent.domain.plain_text import problem_list
from agent.entrypoints.text_lines import text_width

PHASES = {
    "": "syncing",
    "snapshot": "copying",
    "upload": "uploading",
    "memories": "uploading memories",
    "push": "sending",
    "download": "downloading",
}
"""Phases of a sync or a restore, as texts show them."""

CLOCK_TOLERANCE = timedelta(minutes=1)
"""A time so little in the future is no sign of a wrong clock."""

BAR = 20
"""Width of a progress bar in characters."""

SEE_STATUS = "run akosha-agent status to see the problem"
_CORRECT_SETTING = "correct the setting; settings are read again at each call"


def json_value(value: object) -> str:
    """Return a value that JSON has no type for: a time as in RFC 3339. For the argument `default` of `json.dumps`."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def hint_of(error: AkoshaError) -> str:
    """Return the error's hint, or a general one if it has none."""
    return error.hint or (_CORRECT_SETTING if isinstance(error, SettingsError) else SEE_STATUS)


def error_lines(label: str, error: str) -> list[str]:
    """Return the text of an AkoshaError as a line with the message, and a line with the hint if it has one.

    >>> error_lines("cloud: ", "the bucket memories does not exist (create it)")
    ['cloud: the bucket memories does not exist', '  create it']
    """
    hint = hint_of_text(error)
    return [label + error_message(error), *([f"  {hint}"] if hint else [])]


def error_message(error: str) -> str:
    """Return the text of an AkoshaError without its hint.

    >>> error_message("the bucket memories does not exist (create it)")
    'the bucket memories does not exist'
    """
    hint = hint_of_text(error)
    return error.removesuffix(f"({hint})").rstrip() if hint else error


def hint_of_text(error: str) -> str:
    """Return the hint at the end of the text of an AkoshaError, or "". A single word in parentheses is not a hint.

    >>> hint_of_text("the bucket memories does not exist (create it (or set akosha_cloud_bucket))")
    'create it (or set akosha_cloud_bucket)'
    >>> hint_of_text("no space left (/var/lib)")
    ''
    """
    if not error.endswith(")"):
        return ""
    depth = 0
    for at in range(len(error) - 1, -1, -1):
        depth += (error[at] == ")") - (error[at] == "(")
        if depth == 0:
            found = error[at + 1 : -1]
            return found if " " in found else ""
    return ""


def sync_lines(result: SyncResult) -> list[str]:
    """Return the result of a sync in lines: the outcome, the error of each method, and the fix below each error."""
    if isinstance(result, SyncFailed) and result.errors:
        return [line for e in result.errors for line in error_lines(f"{e.method}: ", e.error)]
    if isinstance(result, SyncSucceeded):
        failed = (error_lines(f"{e.method} failed: ", e.error) for e in result.errors)
        return [sync_summary(replace(result, errors=())), *itertools.chain.from_iterable(failed)]
    return [sync_summary(result)]


def sync_summary(result: SyncResult) -> str:
    """Return the result of a sync in one line."""
    if isinstance(result, SyncSucceeded):
        sent = f"{human_bytes(result.bytes_transferred)} sent in {result.duration_seconds:.1f} s to {result.location}"
        failed = "".join(f"; {e.method} failed: {e.error}" for e in result.errors)
        if not result.manifest_key:
            missing = "".join(f"; {name}: {reason}" for name, reason in sorted(result.incomplete.items()))
            return f"{result.memories:,} memories, {sent}{missing}{failed}"
        text = f"{result.upload_id}: {len(result.files_uploaded)} objects, {sent}"
        missing = "".join(f"; {name} is still pending: {reason}" for name, reason in sorted(result.incomplete.items()))
        repaired = f"; {result.repairs} was damaged: its damaged databases were sent again" if result.repairs else ""
        unreadable = "".join(f"; {name} could not be read by DuckDB" for name in result.unreadable)
        return f"{text}{unreadable}{repaired}{missing}{failed}"
    if isinstance(result, SyncSkipped):
        return result.why
    return result.error or "failed"


def ingest_summary(event: IngestCompleted | IngestFailed) -> str:
    """Return the outcome of an ingestion in one line."""
    if isinstance(event, IngestFailed):
        retry = f"; next attempt at {local_time(event.retry_at, '%H:%M:%S')}" if event.retry_at else ""
        return f"{event.upload_id}: {event.error}{retry}"
    parts = [f"{event.stored:,} memories stored", f"{event.known:,} already stored"]
    parts += [f"{count:,} not stored: {reason}" for reason, count in sorted(event.kept_back.items())]
    return f"{event.upload_id}: {'; '.join(parts)}"


def verify_summary(event: UploadVerified) -> str:
    """Return the outcome of a verification in one line."""
    checked = "downloaded and read" if event.deep else "compared with the manifest"
    if event.whole:
        return f"{event.upload_id}: intact, {event.objects} objects {checked}"
    problems = problem_list(event.problems)
    return f"{event.upload_id}: DAMAGED, {event.objects} objects {checked}: {problems}"


def event_summary(event: Event) -> str:
    """Return an event that happened, or a request, in one line; "" for other events."""
    if isinstance(event, SyncRequested):
        return f"{event.reason}, route: {', then '.join(event.route)}"
    if isinstance(event, SyncResult):
        return sync_summary(event)
    if isinstance(event, IngestCompleted | IngestFailed):
        return ingest_summary(event)
    if isinstance(event, UploadVerified):
        return verify_summary(event)
    if isinstance(event, UploadsPruned):
        return prune_summary(event)
    return overdue_summary(event) if isinstance(event, DeliveryOverdue | DeliveryRecovered) else ""


def overdue_summary(event: DeliveryOverdue | DeliveryRecovered) -> str:
    """Return in one line what waits for too long, or that it does not any more."""
    since = f"since {local_time(event.since)}"
    if isinstance(event, DeliveryRecovered) and event.removed:
        return (
            f"{event.method}: {', '.join(event.removed)} removed before delivery; nothing else waits {since} any more"
        )
    if isinstance(event, DeliveryRecovered):
        return f"{event.method}: delivers again what waited {since}"
    error = f": {event.error}" if event.error else ""
    return f"{event.method}: {', '.join(event.databases)} not delivered {since}{error}"


def prune_summary(event: UploadsPruned) -> str:
    """Return what a prune deleted in one line."""
    freed = f"{event.objects} objects, {human_bytes(event.bytes_freed)}"
    count = len(event.upload_ids)
    parts = [f"{count} upload{'s' * (count != 1)} deleted ({freed}), {event.kept} kept"]
    if event.leftovers:
        parts.append(f"{event.leftovers} objects left over from unfinished uploads deleted")
    if event.error:
        parts.append(f"not all were deleted: {event.error}")
    return "; ".join(parts)


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units.

    >>> human_bytes(43_200_000)
    '43.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 - SI prefixes
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(fraction: float) -> str:
    """Return a fraction in percent; 100 % only if it is complete.

    >>> percent(0.42), percent(0.9999)
    ('42 %', '99 %')
    """
    return f"{math.floor(fraction * 100)} %"


def progress_parts(
    done: int, total: int | None, rate: float | None, remaining_seconds: float | None, *, of_bytes: bool = True
) -> dict[str, str]:
    """Return `percent`, `count`, `rate` and `remaining` time, as far as they are known.

    >>> list(progress_parts(5_000_000, 20_000_000, 1e6, 15.0).values())
    ['25 %', '5.0 MB of 20.0 MB', '1.0 MB/s', '15 s left']
    >>> progress_parts(3, 4, None, None, of_bytes=False)
    {'percent': '75 %', 'count': '3 of 4'}
    """

    def count(number: float) -> str:
        return human_bytes(number) if of_bytes else f"{number:,.0f}"

    parts: dict[str, str] = {}
    if total:
        parts |= {"percent": percent(min(done / total, 1.0)), "count": f"{count(done)} of {count(total)}"}
    elif done:
        parts["count"] = count(done)
    if rate is not None and of_bytes:
        parts["rate"] = f"{human_bytes(rate)}/s"
    if remaining_seconds is not None:
        parts["remaining"] = f"{duration(remaining_seconds)} left"
    return parts


def bar(fraction: float, encoding: str | None) -> str:
    """Return a bar of BAR characters, in ASCII if the encoding is not UTF-8.

    >>> bar(0.5, "ascii")
    '##########..........'
    """
    full, rest = ("━", "╌") if (encoding or "").lower().replace("-", "") == "utf8" else ("#", ".")
    count = math.floor(fraction * BAR)
    return full * count + rest * (BAR - count)


def phase_name(phase: str) -> str:
    """Return what a sync or a restore does in this phase."""
    return PHASES.get(phase, phase)


def age(at: datetime, now: datetime | None = None) -> str:
    """Return how long ago a time was, rounded down. A time that is less than a minute in the future counts as now.

    >>> noon = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    >>> age(noon, datetime(2026, 3, 1, 12, 3, tzinfo=UTC)), age(noon, datetime(2026, 3, 1, 13, 29, tzinfo=UTC))
    ('3 min ago', '1 h 29 min ago')
    >>> age(datetime(2026, 3, 4, 14, 0, tzinfo=UTC), noon)
    '3 d 2 h in the future'
    """
    now = now or datetime.now(UTC)
    seconds = math.floor((now - at).total_seconds())
    if is_ahead(at, now):
        return f"{_in_two_units(-seconds)} in the future"
    return f"{_in_two_units(max(seconds, 0))} ago"


def is_ahead(at: datetime, now: datetime) -> bool:
    """Return whether a time is so far in the future that a clock is wrong or was set back."""
    return at - now > CLOCK_TOLERANCE


def _in_two_units(seconds: int) -> str:
    """Return a number of seconds in its largest unit, and the rest of days and hours in the next unit."""
    if seconds < 3600:  # noqa: PLR2004 - seconds of an hour
        return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"  # noqa: PLR2004 - seconds of a minute
    large, small, names = (86_400, 3600, ("d", "h")) if seconds >= 86_400 else (3600, 60, ("h", "min"))  # noqa: PLR2004
    rest = seconds % large // small
    return f"{seconds // large} {names[0]}" + (f" {rest} {names[1]}" if rest else "")


def duration(seconds: float) -> str:
    """Return a number of seconds, rounded up: in seconds, in minutes and seconds, or in hours and minutes.

    >>> duration(41.2), duration(252), duration(7500)
    ('42 s', '4:12', '2 h 5 min')
    """
    whole = max(math.ceil(seconds), 0)
    if whole < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 - seconds of an hour
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return each row as a line, its cells padded to the width of their column.

    >>> columns([("name", "size"), ("reflection.duckdb", "1 MB")])
    ['name               size', 'reflection.duckdb  1 MB']
    """
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]

    def padded(cell: str, width: int) -> str:
        return cell + " " * (width - text_width(cell))

    return ["  ".join(map(padded, row, widths)).rstrip() for row in rows]


def waits(count: int) -> str:
    """Return the verb for a number of things that wait.

    >>> f"1 memory {waits(1)}, 2 memories {waits(2)}"
    '1 memory waits, 2 memories wait'
    """
    return "waits" if count == 1 else "wait"


def local_time(at: datetime, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time in the local time zone, or unconverted if the system cannot convert it."""
    with suppress(OverflowError, OSError, ValueError):
        at = at.astimezone()
    return f"{at:{form}}"
