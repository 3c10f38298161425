"""`make soak HOURS=2`, or `MINUTES=30`: run an agent under load and check that its use of resources does not grow.

The load: a change every second, a reader of its events, a scrape of its metrics every 15 s, a session end every minute,
and every two minutes a SIGHUP with a changed setting. In the first fifth of the time that setting restarts the agent's
components; later it is a setting of the log, so that the components run on and growth shows. Prints the usage by fifths
of the time. Exits with 1 if it grew, or if a check failed. `--keep FILE` writes the samples to a file.
"""

import argparse
import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.entrypoints.hook.hook_command import hook_command
from agent.settings import Settings
from tests.bench.report import machine as this_machine
from tests.soak.clients import ControlConnection, Reader, get
from tests.soak.usage import FIFTHS, JUDGED, Usage, formatted, sample, verdict
from tests.support import upload_contents, zygote
from tests.support.machine import Machine, Running
from tests.support.session_buddy import Checker, Finding, Writer

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS, SCRAPE_SECONDS, HOOK_SECONDS, HANGUP_SECONDS, CLEANUP_SECONDS = 10.0, 15.0, 60.0, 120.0, 60.0
KEPT_UPLOADS = 20
"""More uploads than the settings below keep: the soak deletes older ones that the agent has not deleted."""

MIN_MINUTES = 2.0
_FINAL_UPLOAD_SECONDS = 120.0
_PROBLEM_LEVELS = ("warning", "error", "critical")


class Soak:
    """An agent and its load, in a folder. `failures` are the failed checks."""

    def __init__(self, folder: Path) -> None:
        quick = {"agent_quiet_seconds": 0.3, "agent_deadline_seconds": 1, "agent_min_interval_seconds": 3}
        few = {"agent_keep_last": 5, "agent_keep_daily": 1, "agent_keep_weekly": 0, "agent_keep_monthly": 0}
        self._machine = Machine(folder, **quick, **few)
        self._folder = folder
        # The real command in a separate process, with the code of this checkout.
        self._machine.environ |= {"PYTHONPATH": str(ROOT), zygote.EXECUTE: "1"}
        self._settings_file = self._machine.home / ".claude" / "settings" / "local.yaml"
        self._settings_file.parent.mkdir(parents=True)
        self._changed: dict[str, int] = {}
        self._hangups = self._hooks = 0
        self.failures: list[str] = []

    def run(self, seconds: float) -> list[Usage]:
        """Run the agent under load for `seconds`; return the samples."""
        machine, samples = self._machine, list[Usage]()
        socket = machine.state / "control.sock"
        with Writer(machine.data, "--interval", "1") as writer, machine.run() as agent:
            started = time.monotonic()
            tasks = {
                SAMPLE_SECONDS: lambda: samples.append(sample(agent.pid, machine.state, started)),
                SCRAPE_SECONDS: lambda: self._scrape(socket),
                HOOK_SECONDS: self._hook,
                HANGUP_SECONDS: lambda: self._hang_up(agent, restart=time.monotonic() < started + seconds / FIFTHS),
                CLEANUP_SECONDS + 1: self._delete_old_uploads,
            }
            with Reader(partial(ControlConnection, socket)) as reader:
                self._generate_load(tasks, started, seconds, agent)
                self._check_last_commit(writer, agent)
            self._check_log(agent, reader)
        return samples

    def _generate_load(
        self, tasks: dict[float, Callable[[], object]], started: float, seconds: float, agent: Running
    ) -> None:
        due = dict.fromkeys(tasks, started)
        for period in tasks:
            due[period] += period
        while (now := time.monotonic()) < started + seconds and agent.process.poll() is None:
            period = min(due, key=lambda period: due[period])
            if due[period] > now:
                time.sleep(min(due[period] - now, started + seconds - now))
                continue
            due[period] += period
            tasks[period]()

    def _scrape(self, socket: Path) -> None:
        if b"akosha_agent_build_info" not in get(socket, "/metrics"):
            self.failures.append("/metrics has no akosha_agent_build_info")

    def _hook(self) -> None:
        self._hooks += 1
        command = hook_command(Settings(agent_state_dir=self._machine.state))
        payload = f'{{"session_id": "soak-{self._hooks}", "reason": "other"}}'
        process = subprocess.run(
            shlex.split(str(command)), input=payload.encode(), env=self._machine.environ, capture_output=True
        )
        if process.returncode or process.stdout or process.stderr:
            self.failures.append(f"hook: {process}")

    def _hang_up(self, agent: Running, *, restart: bool) -> None:
        self._hangups += 1
        self._changed["akosha_agent_rescan_seconds" if restart else "akosha_agent_log_file_mb"] = 60 + self._hangups
        self._settings_file.write_text("".join(f"{key}: {value}\n" for key, value in self._changed.items()))
        agent.process.send_signal(signal.SIGHUP)

    def _delete_old_uploads(self) -> None:
        uploads = sorted((self._machine.bucket / "systems").glob("*/uploads/*"))
        for old in uploads[:-KEPT_UPLOADS]:
            shutil.rmtree(old, ignore_errors=True)

    def _check_last_commit(self, writer: Writer, agent: Running) -> None:
        """Stop the writer; check that its last commit is uploaded in time."""
        if writer.close():
            self.failures.append("the writer failed")
        deadline = time.monotonic() + _FINAL_UPLOAD_SECONDS
        uploaded = Finding(-1, ())
        while agent.process.poll() is None and time.monotonic() < deadline:
            uploaded = self._uploaded()
            if uploaded == Finding(writer.commits, ()):
                return
            time.sleep(1)
        self.failures.append(f"the last commit is {writer.commits}; the bucket has {uploaded}")

    def _uploaded(self) -> Finding:
        newest = self._machine.manifests[-1:]
        if not newest:
            return Finding(-1, ())
        folder = self._folder / "uploaded"
        shutil.rmtree(folder, ignore_errors=True)
        upload_contents.unpack(newest[0], self._machine.object, folder)
        with Checker() as checker:
            return checker.check(folder / "reflection.duckdb")

    def _check_log(self, agent: Running, reader: Reader) -> None:
        lines = agent.log.seen
        if reader.error:
            self.failures.append(f"the reader of events: {reader.error}")
        ended = sum(line.get("event") == "session_ended" for line in lines)
        if ended != self._hooks:
            self.failures.append(f"{self._hooks} sessions ended, but the agent logged {ended}")
        reloads = sum(line.get("event") in ("settings_changed", "settings_unchanged") for line in lines)
        if reloads != self._hangups:
            self.failures.append(f"{self._hangups} SIGHUPs were sent, but the agent logged {reloads} reloads")
        problems: dict[str, int] = {}
        for line in lines:
            if line.get("level") in _PROBLEM_LEVELS or "text" in line:
                name = f"{line.get('level', 'text')} {line.get('event', line.get('text'))}"
                problems[name] = problems.get(name, 0) + 1
        print(f"events read: {reader.results}, progress {reader.progress}, streams {reader.reconnects + 1}")
        print(f"sessions ended: {self._hooks}, SIGHUPs: {self._hangups}")
        print(f"warnings and errors in the log: {problems or 'none'}")


def show(samples: list[Usage], failures: list[str]) -> int:
    """Print the table and the verdict; return the exit code."""
    judged = verdict(samples)
    minutes = samples[-1].seconds / 60
    table = Table(title=f"akosha-agent under load for {minutes:.0f} min on {this_machine()}", title_justify="left")
    table.add_column("median of each fifth")
    for number in range(FIFTHS):
        table.add_column(str(number + 1), justify="right")
    table.add_column("max", justify="right")
    table.add_column("2 to 5")
    names = {
        "own": "PSS of the agent's process",
        "anonymous": "of that, anonymous memory",
        "tree": "PSS with its children",
        "descriptors": "open file descriptors",
        "threads": "threads",
        "children": "child processes",
        "ledger": "ledger on disk",
        "left": "files in staging",
    }
    for name, words in names.items():
        values = judged.medians[name]
        maximum = max(getattr(sample, name) for sample in samples)
        change = "GROWN" if name in judged.grown else "flat" if name in JUDGED else ""
        table.add_row(words, *(formatted(name, value) for value in values), formatted(name, maximum), change)
    (Console() if sys.stdout.isatty() else Console(width=150)).print(table)
    for failure in failures:
        print(f"failed: {failure}")
    flat = not judged.grown
    print("flat" if flat else f"not flat: {', '.join(judged.grown)}")
    return 0 if flat and not failures else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--minutes", type=float, default=30.0, help=f"duration, at least {MIN_MINUTES:g}")
    duration.add_argument("--hours", type=float, help="duration in hours")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write all samples to this CSV file")
    arguments = parser.parse_args()
    minutes = arguments.minutes if arguments.hours is None else arguments.hours * 60
    if not Path("/proc/self/smaps_rollup").exists() or minutes < MIN_MINUTES:
        print(f"the soak needs Linux, because it reads /proc, and at least {MIN_MINUTES:g} minutes", file=sys.stderr)
        return 2
    os.environ[zygote.EXECUTE] = "1"
    with tempfile.TemporaryDirectory(prefix="akosha-soak-") as folder:
        soak = Soak(Path(folder))
        samples = soak.run(minutes * 60)
    if arguments.keep:
        with arguments.keep.open("w", newline="") as file:
            rows = csv.DictWriter(file, list(asdict(samples[0])))
            rows.writeheader()
            rows.writerows(map(asdict, samples))
    return show(samples, soak.failures)


if __name__ == "__main__":
    sys.exit(main())
