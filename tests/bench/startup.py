"""The start of commands as whole processes, against the same interpreter doing nothing."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.report import Line
from tests.support.machine import Machine

BARS = {"--version": 10, "--help": 10, "status": 25}


def lines(folder: Path, rounds: int) -> list[Line]:
    """Measure in turns, so that other load affects all alike. Raises RuntimeError where a command fails."""
    machine = Machine(folder / "machine")
    machine.write(commits=1, entities=1)
    machine.call("sync")  # there is a ledger: `status` opens it
    commands = {"nothing": [sys.executable, "-c", "pass"]}
    commands |= {word: [sys.executable, "-m", "agent", word] for word in BARS}
    # Modules are compiled before they are timed, as the installer of a wheel does.
    environ = {name: value for name, value in machine.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, words in commands.items():
            started = time.perf_counter()
            done = subprocess.run(words, env=environ, cwd=Path(__file__).parents[2], capture_output=True)
            if done.returncode:
                raise RuntimeError(f"{words}: {done}")
            if number:
                times[name].append(time.perf_counter() - started)
    nothing = statistics.median(times["nothing"])
    return [_line(word, statistics.median(times[word]), nothing, bar) for word, bar in BARS.items()]


def _line(word: str, took: float, nothing: float, bar: int) -> Line:
    measured = f"{took * 1000:.0f} ms, python -c pass {nothing * 1000:.1f} ms"
    ratio = took / nothing
    return Line(f"akosha-agent {word}", measured, ratio, f"within {bar} x python -c pass", ratio <= bar)
