"""The text of `memories`: a target's memories in groups, by what they wait for or why they were refused."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.application.monitoring.status import DELIVERED_TO_AKOSHA
from agent.domain.delivery_state import Target
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.plain_text import printable, shorten
from agent.domain.routing import CLOUD, HTTP
from agent.entrypoints.formatting import columns, local_time, waits
from agent.entrypoints.text_lines import Line, Style
from agent.ports import HeldMemory, MemoryCounts

EXAMPLES = 3
"""Number of memories of a group whose first words are shown."""

LONGEST_EXCERPT = 70
"""Length limit of the first words of a text."""

LONGEST_SHOWN = 200
"""Length limit of an ID or a reason; JSON has the full text."""

LIST_ALL = "akosha-agent memories --all lists them"

Texts = Mapping[tuple[str, str, str], str]
"""Key of a row -> its text."""


@dataclass(frozen=True, slots=True)
class Account:
    """One target's memories. A cloud target does not count them; `rows` counts the rows in its last upload."""

    target: Target
    counts: MemoryCounts
    held: Sequence[HeldMemory]
    confirmed_at: datetime | None
    rows: int = 0

    def examples(self) -> Sequence[HeldMemory]:
        """Return the first memories of each group."""
        seen: Counter[tuple[str, str]] = Counter()
        found = []
        for one in self.held:
            group = one.state, one.reason
            seen[group] += 1
            if seen[group] <= EXAMPLES:
                found.append(one)
        return found


def account_lines(account: Account, location: str, texts: Texts, *, failed: bool, everything: bool) -> list[Line]:
    """Return the text about one target.

    `failed`: without what waits; `everything`: all memories of a group instead of examples.
    """
    counts, target = account.counts, account.target
    if target.method == CLOUD:
        rows = f"{account.rows:,} rows in the last upload, which has the whole databases"
        return [
            Line(f"cloud  {location}: {rows if account.rows else 'nothing has been uploaded yet'}", indent=2, bold=5)
        ]
    refused, waiting = sum(counts.refused.values()), sum(counts.waiting.values())
    summary = (
        f"{counts.delivered:,} delivered, {waiting:,} {waits(waiting)}, "
        f"{refused:,} {'was' if refused == 1 else 'were'} refused"
    )
    lines = [Line(f"{target.method}  {location}: {summary}", indent=2, bold=len(target.method))]
    if target.method == HTTP and counts.delivered:
        lines.append(Line(f"  {DELIVERED_TO_AKOSHA}", indent=2))
    if account.confirmed_at:
        lines.append(Line(f"  {CONFIRMED}: checked at {local_time(account.confirmed_at)}", indent=2))
    lines += _groups(account, texts, failed=failed, everything=everything)
    return [line.map(printable) for line in lines]


def _groups(account: Account, texts: Texts, *, failed: bool, everything: bool) -> Iterator[Line]:
    refused, waiting = account.counts.refused, account.counts.waiting
    if everything:
        refused, waiting = (
            Counter(one.reason for one in account.held if one.state == state) for state in ("refused", "waiting")
        )
    groups = [("refused", reason, count) for reason, count in _most_first(refused)]
    groups += [] if failed else [("waiting", reason, count) for reason, count in _most_first(waiting)]
    for state, reason, count in groups:
        verb = "was refused" if count == 1 else "were refused"
        text = f"{count:,} {verb if state == 'refused' else waits(count)}: {shorten(reason, LONGEST_SHOWN)}"
        yield Line("")
        yield Line(f"  {text}", Style.BAD if state == "refused" else Style.WARNING, indent=2)
        if reason == NO_EMBEDDING:
            yield Line(f"  {EMBEDDING_HINT}", indent=2)
        if everything:
            yield from _list([one for one in account.held if (one.state, one.reason) == (state, reason)])
            continue
        shown = [one for one in account.examples() if (one.state, one.reason) == (state, reason)]
        for one in shown:
            text = _excerpt(texts.get(one.row.key)) or shorten(one.row.id, LONGEST_EXCERPT)
            yield Line(f"    {one.row.kind}  {text}", indent=6)
        if count > len(shown):
            yield Line(f"    and {count - len(shown):,} more: {LIST_ALL}", Style.DIM, indent=6)


def _list(held: Sequence[HeldMemory]) -> Iterator[Line]:
    """Yield a line for each memory: on a narrow terminal, its ID is in the next one."""
    rows = [(one.row.database, one.row.kind, shorten(one.row.id, LONGEST_SHOWN)) for one in held]
    for row in columns([tuple(map(printable, row)) for row in rows]) if rows else ():
        yield Line(f"    {row}", indent=6)


def _excerpt(text: str | None) -> str:
    """Return the first words of a text in quotes, "" without a text."""
    words = " ".join((text or "").split())
    return f'"{shorten(words, LONGEST_EXCERPT)}"' if words else ""


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))
