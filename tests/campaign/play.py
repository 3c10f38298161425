"""The rounds of a chunk: a fault strikes in a world, again and again. As a program:

    python -m tests.campaign.play SEED ROW NUMBER ROUNDS FOLDER

writes the outcome to FOLDER/outcome.json. It ends with its world when its standard input ends: its runner has ended.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.campaign.checks import violations
from tests.campaign.faults import ALL, Fault
from tests.campaign.world import NotSettled, Skipped, World

SYNC_SECONDS = 0.7
"""Approximate time of a sync of the campaign's databases: a fault strikes at a random moment of it."""

COMMITS = 6
"""Most transactions of a round in each database."""

OUTCOME = "outcome.json"


@dataclass
class Outcome:
    """The rounds of a row. `slowest_seconds`: the longest time from the end of the fault to calm.

    `struck`: how often each variant of the fault has struck. `skipped`: why this machine does not allow the fault.
    """

    row: str
    rounds: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)
    skipped: str = ""


def play(kind: type[Fault], seed: str, folder: Path, rounds: int) -> Outcome:
    """Play so many rounds of a fault in one world; stop at the first violation, because others would follow from it."""
    fault, outcome, started = kind(), Outcome(kind.row), time.monotonic()
    moment = "before the first round"
    try:
        with World(folder, random.Random(seed), target=kind.target, prepare=fault.prepare) as world:
            for number in range(1, rounds + 1):
                moment, outcome.rounds = f"round {number}", number
                # What a round does depends on its number only, not on how often the rounds before it had to wait.
                rng = random.Random(f"{seed} {number}")
                world.rng.seed(rng.random())
                outcome.slowest_seconds = max(outcome.slowest_seconds, one_round(world, fault, rng))
                if _found(outcome, moment, [*violations(world), *fault.check(world)]):
                    break
            else:
                moment = "at the end"
                _found(outcome, moment, violations(world, at_end=True))
    except Skipped as reason:
        outcome.skipped = str(reason)
    except NotSettled as error:
        _found(outcome, moment, [str(error)])
    except Exception as error:  # noqa: BLE001 - whatever a round raises is a violation
        traceback.print_exc()
        _found(outcome, moment, [f"{type(error).__name__}: {error}"])
    outcome.struck = {**fault.struck}
    outcome.seconds = time.monotonic() - started
    return outcome


def _found(outcome: Outcome, moment: str, problems: Iterable[str]) -> list[str]:
    outcome.violations += [f"{moment}: {text}" for text in problems]
    return outcome.violations


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


def main() -> None:
    seed, row, number, rounds, folder = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    (kind,) = (kind for kind in ALL if kind.row == row)
    outcome = play(kind, f"{seed} {row} {number}", Path(folder) / "world", int(rounds))
    (Path(folder) / OUTCOME).write_text(json.dumps(asdict(outcome)))


def _end_with_the_runner() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
