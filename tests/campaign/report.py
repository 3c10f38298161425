"""The table of a campaign in the terminal, and docs/reliability.md.

    python -m tests.campaign.report

writes the page again from the results of the last runs, after a change of the rows in `faults` or of page.md.
"""

from collections.abc import Sequence
from pathlib import Path
from string import Template

from rich.table import Table

from docs.generator import markdown
from tests.campaign.faults import ALL, Fault
from tests.campaign.play import Outcome
from tests.campaign.record import CHANGED, PAGE, RESULTS, ROOT, Results, Row, read_results, write_results

TEMPLATE = Path(__file__).with_name("page.md")
NOT_PLAYED = "not played yet"


def figures(outcome: Outcome) -> str:
    """Return a chunk's outcome in a few words."""
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    return f"rounds: {outcome.rounds}, violations: {len(outcome.violations)}, {outcome.seconds:.0f} s"


def table(results: Results) -> Table:
    """Return the table for the terminal."""
    shown = Table(title=f"Faults, seed {results.run.seed}, {_minutes(results)}", title_justify="left")
    for title, justify in (("fault", "left"), ("rounds", "right"), ("violations", "right"), ("slowest calm", "right")):
        shown.add_column(title, justify=justify)
    for row in results.rows:
        numbers = (str(row.rounds), str(row.violations), f"{row.slowest_seconds:.1f} s")
        shown.add_row(row.row, *(("skipped", "", "") if row.skipped else numbers))
    return shown


def notes(results: Results) -> list[str]:
    """Return why rows were skipped, and how many variants have struck; after all rounds also those that never have."""
    rounds = {kind.row: kind.rounds for kind in ALL}
    found = [f"{row.row}: skipped, because {row.skipped}." for row in results.rows if row.skipped]
    for row in results.rows:
        if row.struck:
            never = [name for name, count in row.struck.items() if not count]
            struck = f"{row.row}: struck {sum(row.struck.values())} times in {row.rounds} rounds, "
            struck += f"in {len(row.struck) - len(never)} of {len(row.struck)} variants"
            names = f"; never {', '.join(never)}" if never and row.rounds >= rounds[row.row] else ""
            found.append(f"{struck}{names}.")
    return found


def write(newest: Results) -> None:
    """Add a run to the results, and write the page."""
    (ROOT / PAGE).write_text(page(write_results(ROOT / RESULTS, newest)), encoding="utf-8")


def page(runs: Sequence[Results]) -> str:
    """Return docs/reliability.md."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        runs=markdown.table(("seed", "date", "duration", "rounds", "commit", "machine"), map(_run, runs)),
        faults=_faults(runs),
        notes="\n".join(f"- Seed {each.run.seed}: {note}" for each in runs for note in notes(each)),
    )


def _run(results: Results) -> tuple[str, ...]:
    run, rounds = results.run, sum(row.rounds for row in results.rows)
    whole = sum(kind.rounds for kind in ALL)
    commit = "uncommitted changes" if CHANGED in run.commit else f"`{run.commit}`"
    return run.seed, results.date, _minutes(results), f"{rounds:,} of {whole:,}", commit, run.machine


def _minutes(results: Results) -> str:
    return f"{results.seconds / 60:.0f} min"


def _faults(runs: Sequence[Results]) -> str:
    titles = [f"seed {each.run.seed}: {what}" for each in runs for what in ("rounds", "violations", "slowest")]
    rows = [{row.row: row for row in each.rows} for each in runs]
    return markdown.table(
        ("fault", "bar", *titles),
        ((kind.row, kind.bar, *(cell for each in rows for cell in _cells(kind, each.get(kind.row)))) for kind in ALL),
    )


def _cells(kind: type[Fault], row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return NOT_PLAYED, "", ""
    if row.skipped:
        return "skipped", "", ""
    rounds = str(row.rounds) if row.rounds == kind.rounds else f"{row.rounds} of {kind.rounds}"
    return rounds, str(row.violations), f"{row.slowest_seconds:.1f} s ({kind.calm_seconds:g} s)"


if __name__ == "__main__":
    (ROOT / PAGE).write_text(page(read_results(ROOT / RESULTS)), encoding="utf-8")
