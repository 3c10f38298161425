"""The session-end hook as a whole process, against the same interpreter doing nothing."""

import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.entrypoints.hook.command_line import hook_command
from agent.settings import Settings
from tests.bench.report import Line
from tests.support.machine import Machine

BAR = 2.5
LONGEST_SECONDS = 0.2
TOLD = json.dumps({"session_id": "3f2a", "reason": "clear", "hook_event_name": "SessionEnd"}).encode()


def lines(folder: Path, rounds: int) -> list[Line]:
    """Measure in turns, so that what else the machine does meets all alike. Raises RuntimeError where one fails."""
    folder.mkdir(parents=True)
    machine = Machine(folder / "machine")
    machine.write(commits=1, entities=1)
    nothing = [sys.executable, "-c", "pass"]
    down, up = (_as_installed(place) for place in (folder / "nobody", machine.state))
    alone = _timed({"nothing": nothing, "hook": down}, rounds, machine)
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        beside = _timed({"nothing": nothing, "hook": up}, rounds, machine)
        agent.logged("session_ended", rounds)
        agent.process.send_signal(signal.SIGSTOP)
        wedged = _timed({"nothing": nothing, "hook": up}, rounds, machine)["hook"]
        agent.process.send_signal(signal.SIGCONT)
        agent.logged("session_ended", 2 * rounds)
    longest = Line(
        "session-end hook, an agent that hangs (SIGSTOP)",
        f"{statistics.median(wedged) * 1000:.1f} ms (most {max(wedged) * 1000:.1f})",
        max(wedged) / LONGEST_SECONDS,
        f"{LONGEST_SECONDS * 1000:.0f} ms at most",
        max(wedged) <= LONGEST_SECONDS,
    )
    return [_line("no agent running", alone), _line("an agent running", beside), longest]


def _as_installed(state: Path) -> list[str]:
    return shlex.split(str(hook_command(Settings(agent_state_dir=state))))


def _line(what: str, times: Mapping[str, Sequence[float]]) -> Line:
    nothing, hook = (statistics.median(times[name]) for name in ("nothing", "hook"))
    measured = f"{hook * 1000:.1f} ms (most {max(times['hook']) * 1000:.1f}), python -c pass {nothing * 1000:.1f} ms"
    ratio = hook / nothing
    return Line(f"session-end hook, {what}", measured, ratio, f"within {BAR} x python -c pass", ratio <= BAR)


def _timed(commands: Mapping[str, Sequence[str]], rounds: int, machine: Machine) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            started = time.perf_counter()
            done = subprocess.run(words, input=TOLD, env=machine.environ, capture_output=True)
            times[name].append(time.perf_counter() - started)
            if done.returncode or done.stdout or done.stderr:
                raise RuntimeError(f"{words}: {done}")
    return times
