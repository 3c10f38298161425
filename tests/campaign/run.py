"""`make faults SEED=n MINUTES=m`: fault after fault against a running agent; prove that nothing is lost.

In each round a writer commits transactions, a fault strikes, and once things have calmed down every promise is checked
(`checks`). The rounds of a row are played in chunks (`plan`), several chunks at once, each in a process and a world of
its own (`play`). A seed gives the same faults at the same moments of a round, however many processes play.

`--full` plays all rounds of each row, `--rounds N` so many, `--minutes` as many as typically take so long.
`--keep FILE` records each played chunk; the same command goes on after the chunks that FILE has. Prints the table;
exits with 1 if there was a violation.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.campaign import play, report
from tests.campaign.faults import ALL, Fault
from tests.campaign.plan import PROCESSES, Chunk, all_rounds, chunks, seconds, spread
from tests.campaign.play import OUTCOME, Outcome
from tests.campaign.record import ROOT, Played, Record, Results, Run
from tests.campaign.scratch import end_processes, remove, run_folder, scratch
from tests.support.waiting import happens

PROGRAM = (sys.executable, "-m", play.__name__)
MOST_SHOWN = 5
END_SECONDS = 30.0
"""Maximum time until a chunk has ended its world; then its processes are killed."""

STUCK_SECONDS = 600.0
"""A chunk that takes so much longer than ten times its typical duration is killed."""


class Playing:
    """A chunk that a process plays in a folder."""

    def __init__(self, chunk: Chunk, seed: str, folder: Path) -> None:
        self.chunk, self.folder = chunk, folder
        self._end_at = time.monotonic() + STUCK_SECONDS + 10 * chunk.seconds
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        words = (seed, chunk.row, str(chunk.number), str(chunk.rounds), str(folder))
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [*PROGRAM, *words],
                cwd=ROOT,
                # Names the folder in the environment of all processes of the chunk: see `scratch.remove`.
                env=os.environ | {"TMPDIR": str(temporary)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt from the terminal reaches the runner only
            )

    def has_ended(self) -> bool:
        if time.monotonic() > self._end_at:
            end_processes(self.folder)
        return self._process.poll() is not None

    def end(self) -> None:
        """Ask the process to end. `wait` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        end_processes(self.folder)

    def outcome(self) -> Outcome:
        """Return the outcome of a process that has ended."""
        self.end()
        self.wait()
        try:
            return Outcome(**json.loads((self.folder / OUTCOME).read_text()))
        except (OSError, ValueError):
            output = (self.folder / "output").read_text(errors="replace")[-1000:]
            return Outcome(self.chunk.row, violations=[f"ended with {self._process.returncode}: {output}"])


def play_all(plan: Sequence[Chunk], seed: str, folder: Path, jobs: int) -> Iterator[Playing]:
    """Play chunks, so many at once, and yield each when it has ended. Closing the iterator ends the others.

    Chunks that take long come first, so that all processes end at about the same time.
    """
    waiting = sorted(plan, key=lambda chunk: -chunk.seconds)
    playing = list[Playing]()
    try:
        while waiting or playing:
            while waiting and len(playing) < jobs:
                playing.append(Playing(waiting.pop(0), seed, folder / str(len(waiting))))
            happens(lambda: any(one.has_ended() for one in playing), STUCK_SECONDS)
            for one in [one for one in playing if one.has_ended()]:
                playing.remove(one)
                yield one
    finally:
        for one in playing:
            one.end()
        for one in playing:
            one.wait()


def repeat_command(chunk: Chunk, seed: str) -> str:
    """Return the command that plays a chunk again."""
    program = (os.path.relpath(sys.executable, ROOT), os.path.relpath(__file__, ROOT))
    return shlex.join((*program, "--seed", seed, "--only", chunk.row, "--chunk", str(chunk.number)))


def show(console: Console, chunk: Chunk, seed: str, outcome: Outcome, files: Path) -> None:
    """Print a chunk's outcome in a line; for violations also where its files are kept, and how to repeat it."""
    console.print(f"{chunk.row}, chunk {chunk.number}: {report.figures(outcome)}")
    for text in outcome.violations[:MOST_SHOWN]:
        console.print(f"  {text}")
    if outcome.violations:
        kept = scratch() / f"violation-{datetime.now(UTC):%Y%m%dT%H%M%S}-{chunk.number}"
        files.rename(kept)
        console.print(f"  files: {kept}\n  repeat: {repeat_command(chunk, seed)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=15.0, help=f"duration with {PROCESSES} processes; default 15")
    amount = parser.add_mutually_exclusive_group()  # instead of the minutes
    amount.add_argument("--rounds", type=int, help="rounds of each row")
    amount.add_argument("--full", action="store_true", help="all rounds of each row")
    amount.add_argument("--chunk", type=int, metavar="NUMBER", help="all rounds of this chunk of each row")
    parser.add_argument("--only", default="", help="the row of this name, or the rows that contain this text")
    parser.add_argument("--jobs", type=int, default=PROCESSES, help="chunks that are played at once")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="record played chunks, and go on after them")
    parser.add_argument("--report", action="store_true", help="write the results to docs/reliability.md")
    arguments = parser.parse_args()
    kinds = selected(arguments.only)
    plan = planned(kinds, arguments)
    if not plan:
        parser.error("there is no such row or chunk")
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored in a process that runs in the background
        signal.signal(number, signal.default_int_handler)
    played = campaign(plan, Run.of_this_machine(arguments.seed), Record(arguments.keep), arguments.jobs)
    if len(played) < len(plan):
        print("interrupted" + "; the same command goes on" * bool(arguments.keep))
        return 128 + signal.SIGINT
    results = Results.of(played)
    Console().print(report.table(results), *report.notes(results), sep="\n")
    if arguments.report:
        report.write(results)
    return 1 if any(row.violations for row in results.rows) else 0


def selected(text: str) -> list[type[Fault]]:
    """Return the rows with this name, or else those that contain the text."""
    return [kind for kind in ALL if kind.row == text] or [kind for kind in ALL if text.lower() in kind.row.lower()]


def planned(kinds: Sequence[type[Fault]], arguments: argparse.Namespace) -> list[Chunk]:
    if arguments.rounds:
        return [chunk for kind in kinds for chunk in chunks(kind, arguments.rounds)]
    if arguments.full or arguments.chunk:
        return [chunk for chunk in all_rounds(kinds) if arguments.chunk in (None, chunk.number)]
    return spread(kinds, arguments.minutes)


def campaign(plan: Sequence[Chunk], run: Run, record: Record, jobs: int) -> list[Played]:
    """Play what is left of a plan, until an interrupt; return what was played, also before."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    played = record.played(run, plan)
    done = [each.chunk for each in played]
    left = [chunk for chunk in plan if chunk not in done]
    console.print(f"{len(left)} of {len(plan)} chunks, about {seconds(left) / 60 / jobs:.0f} min")
    with suppress(KeyboardInterrupt), run_folder() as folder, closing(play_all(left, run.seed, folder, jobs)) as ended:
        for one in ended:
            outcome = one.outcome()
            played.append(Played(run, one.chunk, datetime.now(UTC), outcome))
            record.append(played[-1])
            show(console, one.chunk, run.seed, outcome, one.folder)
            remove(one.folder)
    return sorted(played, key=lambda each: plan.index(each.chunk))


if __name__ == "__main__":
    sys.exit(main())
