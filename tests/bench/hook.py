"""The duration of the session-end hook as a process, compared with `python -c pass`."""

import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.entrypoints.hook.hook_command import hook_command
from agent.settings import Settings
from tests.bench.page import open_pages
from tests.bench.report import Line
from tests.support.machine import Machine

BAR = 2.5
MAX_SECONDS = 0.2
INPUT = json.dumps({"session_id": "3f2a", "reason": "clear", "hook_event_name": "SessionEnd"}).encode()


def lines(folder: Path, rounds: int) -> list[Line]:
    """Measure in turns, so that other load affects all alike. Raises RuntimeError if a command fails."""
    folder.mkdir(parents=True)
    machine = Machine(folder / "machine")
    machine.write(commits=1, entities=1)
    nothing = [sys.executable, "-c", "pass"]
    without_agent, with_agent = (_as_installed(state) for state in (folder / "no-agent", machine.state))
    stopped = _timed({"nothing": nothing, "hook": without_agent}, rounds, machine)
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        running = _timed({"nothing": nothing, "hook": with_agent}, rounds, machine)
        agent.logged("session_ended", rounds)
        with open_pages(machine, 1):
            watched = _timed({"nothing": nothing, "hook": with_agent}, rounds, machine)
            agent.logged("session_ended", 2 * rounds)
        agent.process.send_signal(signal.SIGSTOP)
        hanging = _timed({"nothing": nothing, "hook": with_agent}, rounds, machine)["hook"]
        agent.process.send_signal(signal.SIGCONT)
        agent.logged("session_ended", 3 * rounds)
    longest = Line(
        "session-end hook, an agent that hangs (SIGSTOP)",
        f"{statistics.median(hanging) * 1000:.1f} ms (max {max(hanging) * 1000:.1f})",
        max(hanging) / MAX_SECONDS,
        f"{MAX_SECONDS * 1000:.0f} ms at most",
        max(hanging) <= MAX_SECONDS,
    )
    return [
        _line("no agent running", stopped),
        _line("an agent running", running),
        _line("a page open", watched),
        longest,
    ]


def _as_installed(state: Path) -> list[str]:
    return shlex.split(str(hook_command(Settings(agent_state_dir=state))))


def _line(what: str, times: Mapping[str, Sequence[float]]) -> Line:
    nothing, hook = (statistics.median(times[name]) for name in ("nothing", "hook"))
    measured = f"{hook * 1000:.1f} ms (max {max(times['hook']) * 1000:.1f}), python -c pass {nothing * 1000:.1f} ms"
    ratio = hook / nothing
    return Line(f"session-end hook, {what}", measured, ratio, f"within {BAR} x python -c pass", ratio <= BAR)


def _timed(commands: Mapping[str, Sequence[str]], rounds: int, machine: Machine) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            started = time.perf_counter()
            process = subprocess.run(words, input=INPUT, env=machine.environ, capture_output=True)
            times[name].append(time.perf_counter() - started)
            if process.returncode or process.stdout or process.stderr:
                raise RuntimeError(f"{words}: {process}")
    return times
