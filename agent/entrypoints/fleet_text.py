"""The text of `fleet`: how many systems are fine, what could not be read, and a table, the worst systems first.

A terminal that is too narrow gets fewer columns; below a system that is not fine is the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta

from agent.application.fleet.fleet import FleetReport, Source
from agent.application.fleet.merge import Condition, FleetSystem
from agent.domain.plain_text import printable
from agent.entrypoints.formatting import age, columns, human_bytes
from agent.entrypoints.text_lines import Line, Style, cut_to_width, labelled, text_width

STYLES = {
    Condition.DAMAGED: Style.BAD,
    Condition.FAILING: Style.BAD,
    Condition.OVERDUE: Style.WARNING,
    Condition.UNKNOWN: Style.WARNING,
    Condition.FINE: Style.PLAIN,
}

LABEL = 8
INDENT = 2
NAME_PART = 4
NARROWEST_NAME = 14
"""A system's name gets a quarter of the terminal's width, and at least 14 columns."""

_GAP = 2
_LONGEST_BEHIND = timedelta(days=9999).total_seconds()


def _ingestion(system: FleetSystem, now: datetime) -> str:
    found = system.ingestion
    if found is None:
        return ""
    if found.error:
        return "fails"
    if found.behind_seconds is None:
        return "unknown"
    if not found.behind_seconds:
        return "up to date"
    behind = timedelta(seconds=min(found.behind_seconds, _LONGEST_BEHIND))
    return f"{age(now - behind, now).removesuffix(' ago')} behind"


def _last_result(system: FleetSystem, now: datetime) -> str:
    return f"{system.last_result.outcome} {age(system.last_result.time, now)}" if system.last_result else ""


def _failures(system: FleetSystem, now: datetime) -> str:
    if system.failures is None:
        return ""
    since = f" since {age(system.failing_since, now).removesuffix(' ago')}" if system.failing_since else ""
    return f"{system.failures:,}{since}"


COLUMNS: Mapping[str, tuple[int, Callable[[FleetSystem, datetime], str]]] = {
    "system": (100, lambda one, _: one.system_id),
    "state": (7, lambda one, _: one.condition.value),
    "last success": (16, lambda one, now: age(one.last_success, now) if one.last_success else "never seen"),
    "last result": (26, _last_result),
    "failures": (20, _failures),
    "ingestion": (20, _ingestion),
    "version": (12, lambda one, _: one.agent_version),
    "size": (10, lambda one, _: "" if one.stored_bytes is None else human_bytes(one.stored_bytes)),
    "host": (24, lambda one, _: one.host),
}
"""The columns of the table, from the left: the widest cell, so that no system takes the place of others; the cells."""

DROPPED = ("host", "last result", "size", "version", "ingestion", "failures")
"""The columns that a narrow terminal does not get, the first one first."""


def fleet_lines(report: FleetReport, *, width: int | None) -> list[Line]:
    """Return the text of a report for a terminal of this width, without control characters; None: for a pipe."""
    lines = [_summary(report), *_source_lines(report)]
    if report.systems:
        lines += [Line(""), *_table(report, width)]
    return [line.map(printable) for line in lines]


def _summary(report: FleetReport) -> Line:
    counts = Counter(one.condition for one in report.systems)
    total = len(report.systems)
    bad = [condition for condition in Condition if condition is not Condition.FINE and counts[condition]]
    systems = f"{total:,} {'system' if total == 1 else 'systems'}"
    unread = [source.name for source in report.sources if source.error]
    more = f"; not read: {', '.join(unread)}" if unread else ""
    if bad:
        counted = ", ".join(f"{counts[condition]:,} {condition.value}" for condition in (*bad, Condition.FINE))
        return Line(f"{systems}: {counted}{more}", STYLES[bad[0]])
    if not total:
        reason = f": {' and '.join(unread)} could not be read" if unread else ""
        return Line(f"No system is known{reason}", Style.WARNING)
    return Line(f"{systems}: all fine{more}", Style.WARNING if unread else Style.GOOD)


def _source_lines(report: FleetReport) -> Iterator[Line]:
    for source in report.sources:
        yield labelled(source.name, _source_text(source), LABEL, Style.BAD if source.error else Style.PLAIN)
        for note in source.notes:
            yield labelled("", note, LABEL, Style.WARNING)


def _source_text(source: Source) -> str:
    if not source.location:
        return f"not configured: {source.hint}"
    if source.error:
        return f"could not be read: {source.error}"
    return f"{source.location}: {source.systems:,} {'system' if source.systems == 1 else 'systems'}"


def _table(report: FleetReport, width: int | None) -> Iterator[Line]:
    titles = [title for title in COLUMNS if title not in DROPPED or any(_cells(report, title))]
    name_width = max(text_width(one.system_id) for one in report.systems)
    if width is not None:
        name_width = min(name_width, max(width // NAME_PART, NARROWEST_NAME))
        for title in DROPPED:
            if title in titles and _width(report, titles, name_width) > width:
                titles.remove(title)
    rows = [
        [_cut(one.system_id, name_width), *(_cell(one, title, report.time) for title in titles[1:])]
        for one in report.systems
    ]
    header, *texts = columns([titles, *rows])
    yield Line(header, Style.DIM)
    for one, text in zip(report.systems, texts, strict=True):
        yield Line(text, STYLES[one.condition])
        if one.reason:
            yield Line(f"{' ' * INDENT}{one.reason}", indent=INDENT)


def _cells(report: FleetReport, title: str) -> list[str]:
    return [_cell(one, title, report.time) for one in report.systems]


def _cell(system: FleetSystem, title: str, now: datetime) -> str:
    width, text = COLUMNS[title]
    return _cut(text(system, now), width)


def _width(report: FleetReport, titles: list[str], name_width: int) -> int:
    widths = [max(map(text_width, [title, *_cells(report, title)])) for title in titles[1:]]
    return max(name_width, len("system")) + sum(widths) + _GAP * len(widths)


def _cut(text: str, width: int) -> str:
    return text if text_width(text) <= width else f"{cut_to_width(text, width - 3)}..."
