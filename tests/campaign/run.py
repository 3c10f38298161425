"""`make faults SEED=n MINUTES=m`: fault after fault against a running agent; prove that nothing is lost.

In each round a writer commits transactions, a fault strikes, and once things have calmed down every promise is checked
(`checks`). The same seed gives the same faults at the same moments of the campaign's clock. The time is spread over the
rows; `--rounds N` does N rounds of each row instead. `--keep FILE` records each finished row, and goes on after the
rows that FILE has. Prints the table; exits with 1 if there was a violation.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaign.checks import violations
from tests.campaign.faults import ALL, Fault
from tests.campaign.world import NotSettled, Skipped, World

MOST_SHOWN = 5
SYNC_SECONDS = 0.7
"""Approximate time of a sync of the campaign's databases: a fault strikes at a random moment of it."""

COMMITS = 6
"""Most transactions of a round in each database."""


@dataclass
class Outcome:
    """The rounds of one row. `slowest_seconds`: the longest time from the end of the fault to calm.

    `skipped`: why this machine does not allow the fault.
    """

    row: str
    rounds: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    skipped: str = ""


def play(kind: type[Fault], seed: str, folder: Path, *, seconds: float, rounds: int | None = None) -> Outcome:
    """Play rounds of a fault in one world, for `seconds` (at least one round), or so many `rounds`."""
    rng, fault, outcome = random.Random(seed), kind(), Outcome(kind.row)
    started = time.monotonic()
    try:
        with World(folder, rng, target=kind.target, prepare=fault.prepare) as world:
            for _ in _rounds(started + seconds, rounds):
                _play_round(world, fault, outcome, rng)
                if outcome.violations:  # what follows a violation would be its consequence
                    break
            else:
                outcome.violations += [f"at the end: {text}" for text in violations(world, at_end=True)]
    except Skipped as reason:
        outcome.skipped = str(reason)
    except NotSettled as error:
        outcome.violations.append(f"before the first round: {error}")
    outcome.seconds = time.monotonic() - started
    return outcome


def _rounds(until: float, count: int | None) -> Iterator[int]:
    """Yield for each round: `count` times, or if that is None until a time, but at least once."""
    for number in itertools.count(1):
        yield number
        if number == count or (count is None and time.monotonic() >= until):
            return


def _play_round(world: World, fault: Fault, outcome: Outcome, rng: random.Random) -> None:
    outcome.rounds += 1
    try:
        outcome.slowest_seconds = max(outcome.slowest_seconds, one_round(world, fault, rng))
        found = [*violations(world), *fault.check(world)]
    except NotSettled as error:
        found = [str(error)]
    outcome.violations += [f"round {outcome.rounds}: {text}" for text in found]


def one_round(world: World, fault: Fault, rng: random.Random) -> float:
    """Commit, strike, commit, heal, and wait for calm; return the seconds that this took. Raises NotSettled."""
    world.begin_round()
    if not fault.delayed:
        fault.strike(world, rng)
        world.commit(rng.randint(1, COMMITS))
    else:
        pause = rng.uniform(0, SYNC_SECONDS)
        world.commit(rng.randint(1, COMMITS))
        threading.Event().wait(pause)
        fault.strike(world, rng)
        if rng.random() < 0.5:
            world.commit(1)
    fault.heal(world, rng)
    ended = time.monotonic()
    world.settle(fault.calm_seconds)
    return time.monotonic() - ended


def report(outcomes: Sequence[Outcome], seed: str) -> Table:
    table = Table(
        title=f"Faults, seed {seed}, {sum(one.seconds for one in outcomes) / 60:.0f} min", title_justify="left"
    )
    for title, justify in (("fault", "left"), ("rounds", "right"), ("violations", "right"), ("slowest calm", "right")):
        table.add_column(title, justify=justify)
    for one in outcomes:
        figures = (str(one.rounds), str(len(one.violations)), f"{one.slowest_seconds:.1f} s")
        table.add_row(one.row, *(("skipped", one.skipped) if one.skipped else figures))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, help="rounds of each row, instead of --minutes")
    parser.add_argument("--only", default="", help="only rows that contain this text")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="record finished rows, and go on after them")
    arguments = parser.parse_args()
    console = Console()
    done = {one.row: one for one in recorded(arguments.keep)}
    kinds = [kind for kind in ALL if arguments.only.lower() in kind.row.lower()]
    share = arguments.minutes * 60 / len(kinds)
    for kind in kinds:
        if kind.row in done:
            continue
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        console.print(f"{kind.row} ...", highlight=False)
        outcome = play(kind, f"{arguments.seed} {kind.row}", folder, seconds=share, rounds=arguments.rounds)
        done[kind.row] = outcome
        if arguments.keep:
            with arguments.keep.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        for text in outcome.violations[:MOST_SHOWN]:
            console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
        if outcome.violations:
            console.print(f"  its files: {folder}", highlight=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    outcomes = [done[kind.row] for kind in kinds]
    console.print(report(outcomes, arguments.seed))
    return 1 if any(one.violations for one in outcomes) else 0


def recorded(path: Path | None) -> list[Outcome]:
    """Return the rows that were finished before."""
    with suppress(FileNotFoundError):
        return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path else []
    return []


if __name__ == "__main__":
    sys.exit(main())
