"""The record of played chunks, by which a campaign goes on after a stop, and the results that the report is made of."""

import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from tests.campaign.plan import Chunk
from tests.campaign.play import Outcome

ROOT = Path(__file__).parents[2]
PAGE = Path("docs/reliability.md")
RESULTS = Path("tests/campaign/results.json")
CHANGED = " with changes"


@dataclass(frozen=True)
class Run:
    """What the chunks of a run have in common. `commit`: of the code; CHANGED is appended if it was not clean."""

    seed: str
    commit: str
    machine: str

    @classmethod
    def of_this_machine(cls, seed: str) -> Self:
        machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
        return cls(seed, _commit(), f"{machine}, Python {platform.python_version()}")


@dataclass(frozen=True)
class Played:
    """A chunk that has been played."""

    run: Run
    chunk: Chunk
    ended: datetime
    outcome: Outcome


@dataclass(frozen=True)
class Record:
    """A file with a JSON line for each chunk, or none."""

    path: Path | None

    def append(self, played: Played) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(asdict(played) | {"ended": played.ended.isoformat()})
            with self.path.open("a") as file:
                file.write(f"\n{line}")  # on a line of its own, even if a kill has cut the last one

    def played(self, run: Run, plan: Sequence[Chunk]) -> list[Played]:
        """Return the chunks of a plan that the run has played before."""
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        found = [played for line in lines if (played := _played(line)) is not None]
        return [each for each in found if each.run == run and each.chunk in plan]


def _played(line: str) -> Played | None:
    try:
        fields = json.loads(line)
    except ValueError:  # an empty line, or one that a kill has cut
        return None
    return Played(
        Run(**fields["run"]),
        Chunk(**fields["chunk"]),
        datetime.fromisoformat(fields["ended"]),
        Outcome(**fields["outcome"]),
    )


@dataclass(frozen=True)
class Row:
    """The outcomes of a row's chunks together."""

    row: str
    rounds: int
    violations: int
    slowest_seconds: float
    struck: Mapping[str, int]
    skipped: str

    @classmethod
    def of(cls, row: str, outcomes: Sequence[Outcome]) -> Self:
        struck = Counter[str]()
        for outcome in outcomes:
            struck.update(outcome.struck)  # keeps what is 0
        return cls(
            row,
            sum(outcome.rounds for outcome in outcomes),
            sum(len(outcome.violations) for outcome in outcomes),
            round(max(outcome.slowest_seconds for outcome in outcomes), 1),
            {**struck},
            next((outcome.skipped for outcome in outcomes if outcome.skipped), ""),
        )


@dataclass(frozen=True)
class Results:
    """The rows of a run. `seconds`: its duration, without the time between a stop and the next start."""

    run: Run
    date: str
    seconds: int
    rows: list[Row]

    @classmethod
    def of(cls, played: Sequence[Played]) -> Self:
        outcomes = dict[str, list[Outcome]]()
        for each in played:
            outcomes.setdefault(each.chunk.row, []).append(each.outcome)
        date = max(each.ended for each in played).date().isoformat()
        return cls(played[0].run, date, round(duration(played)), [Row.of(*each) for each in outcomes.items()])


def duration(played: Iterable[Played]) -> float:
    """Return the seconds in which at least one chunk was played."""
    total, until = timedelta(), datetime.min.replace(tzinfo=UTC)
    for began, ended in sorted((each.ended - timedelta(seconds=each.outcome.seconds), each.ended) for each in played):
        total += max(ended - max(began, until), timedelta())
        until = max(until, ended)
    return total.total_seconds()


def read_results(path: Path) -> list[Results]:
    """Return the results of the last runs, the newest first."""
    found = json.loads(path.read_text()) if path.exists() else []
    return [
        Results(Run(**each["run"]), each["date"], each["seconds"], [Row(**row) for row in each["rows"]])
        for each in found
    ]


def write_results(path: Path, newest: Results) -> list[Results]:
    """Keep the results of this run and of the last one with another seed; return them."""
    others = [each for each in read_results(path) if each.run.seed != newest.run.seed]
    kept = [newest, *others[:1]]
    path.write_text(json.dumps([asdict(each) for each in kept], indent=1) + "\n")
    return kept


def _commit() -> str:
    """Return the commit of the code; with CHANGED if files differ from it, other than those that a report writes."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in (PAGE, RESULTS)))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + CHANGED * bool(changed)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
