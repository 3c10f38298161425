"""Output of the findings: JSON, plain lines in a pipe, or grouped and coloured on a terminal."""

import itertools
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.domain.plain_text import printable
from agent.entrypoints.doctor.findings import Finding, Level, exit_code

MARKS = {
    Level.OK: ("✓", "green"),
    Level.SKIPPED: ("-", "dim"),
    Level.NOTE: ("!", "dim"),
    Level.WARNING: ("!", "yellow"),
    Level.ERROR: ("✗", "red"),
}
CONCLUSIONS = {
    0: ("No problems found.", "green"),
    1: ("No errors; see the warnings.", "yellow"),
    2: ("There are errors.", "red"),
}

WIDEST_NAME = 32


def document(found: Sequence[tuple[str, Finding]]) -> dict[str, object]:
    """Return the JSON document. `healthy`: there are neither warnings nor errors."""
    checks = [
        {
            "name": finding.name,
            "level": finding.level.value,
            "found": finding.found,
            "cure": finding.hint,
            "detail": finding.detail,
        }
        for _, finding in found
    ]
    return {"healthy": exit_code([finding for _, finding in found]) == 0, "checks": checks}


def plain(found: Sequence[tuple[str, Finding]]) -> list[str]:
    """Return a line for each finding, and another one for its hint."""
    lines = []
    for _, finding in found:
        more = f" ({finding.detail})" if finding.detail else ""
        lines.append(f"{finding.level.value:<8} {finding.name}: {finding.found}{more}")
        if finding.hint:
            lines.append(f"{'':8} -> {finding.hint}")
    return [printable(line) for line in lines]


def show(found: Sequence[tuple[str, Finding]], console: Console | None = None, *, conclusion: bool = True) -> None:
    """Print the findings, on a terminal with a heading for each group and the conclusion."""
    console = console or Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        sys.stdout.write("".join(f"{line}\n" for line in plain(found)))
        return
    widest = max((len(finding.name) for _, finding in found), default=0)
    for group, findings in itertools.groupby(found, key=lambda one: one[0]):
        console.print(Text(group, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1, no_wrap=True)
        table.add_column(width=min(widest, WIDEST_NAME), overflow="fold")
        table.add_column(overflow="fold")
        for _, finding in findings:
            mark, style = MARKS[finding.level]
            table.add_row(Text(mark, style=style), Text(printable(finding.name)), _details(finding, style))
        console.print(Padding(table, (0, 0, 1, 1)))
    if not conclusion:
        return
    text, style = CONCLUSIONS[exit_code([finding for _, finding in found])]
    console.print(Text(text, style=style))


def _details(finding: Finding, style: str) -> Text:
    text = Text(printable(finding.found), style="dim" if finding.level is Level.SKIPPED else "")
    if finding.detail:
        text.append(f"\n{printable(finding.detail)}", style="dim")
    if finding.hint:
        text.append("\n→ ", style=style)
        text.append(printable(finding.hint))
    return text
