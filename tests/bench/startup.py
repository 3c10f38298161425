"""The duration of commands as processes, compared with `python -c pass`."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.report import Line
from tests.support.machine import Machine

BARS = {"--version": 10, "--help": 10, "status": 25}


def lines(folder: Path, rounds: int) -> list[Line]:
    """Measure in turns, so that other load affects all alike. Raises RuntimeError if a command fails."""
    machine = Machine(folder / "machine")
    machine.write(commits=1, entities=1)
    machine.call("sync")  # creates the ledger, which `status` opens
    commands = {"nothing": [sys.executable, "-c", "pass"]}
    commands |= {word: [sys.executable, "-m", "agent", word] for word in BARS}
    # Bytecode is written in the first round, which is not counted: an installed wheel has it too.
    environ = {name: value for name, value in machine.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, words in commands.items():
            started = time.perf_counter()
            process = subprocess.run(words, env=environ, cwd=Path(__file__).parents[2], capture_output=True)
            if process.returncode:
                raise RuntimeError(f"{words}: {process}")
            if number:
                times[name].append(time.perf_counter() - started)
    nothing = statistics.median(times["nothing"])
    return [_line(word, statistics.median(times[word]), nothing, bar) for word, bar in BARS.items()]


def _line(word: str, median: float, nothing: float, bar: int) -> Line:
    measured = f"{median * 1000:.0f} ms, python -c pass {nothing * 1000:.1f} ms"
    ratio = median / nothing
    return Line(f"akosha-agent {word}", measured, ratio, f"within {bar} x python -c pass", ratio <= bar)
