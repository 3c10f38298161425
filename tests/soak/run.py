"""`make soak MINUTES=30`: an agent that has much to do for long; what it takes of the machine must stay the same.

A change every second, a reader of its events, its metrics every 15 s, a session's end every minute, a SIGHUP every two
with a setting that has changed: in the first fifth of the time one for which the agent is built anew, then, so that one
agent shows what grows in it, one of the log's. Prints what it took, by fifths of the time, and exits with 1 where
that has grown, or something went wrong; the samples are kept where `--keep FILE` says.
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
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.entrypoints.hook.command_line import hook_command
from agent.settings import Settings
from tests.bench.report import machine as this_machine
from tests.soak.company import Reader, asked
from tests.soak.taken import FIFTHS, JUDGED, Taken, shown, taken, verdict
from tests.support import upload_contents, zygote
from tests.support.machine import Machine, Running
from tests.support.session_buddy import Checker, Finding, Writer

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS, SCRAPE_SECONDS, HOOK_SECONDS, HANGUP_SECONDS, TIDY_SECONDS = 10.0, 15.0, 60.0, 120.0, 60.0
KEPT_UPLOADS = 20
"""More than the settings below keep: what the agent itself does not delete goes here."""

SHORTEST_MINUTES = 2.0
_AFTERWARDS_SECONDS = 120.0
_BAD = ("warning", "error", "critical")


class Soak:
    """One agent and its company, in a folder. `wrong` is all that should not have been."""

    def __init__(self, folder: Path) -> None:
        quick = {"agent_quiet_seconds": 0.3, "agent_deadline_seconds": 1, "agent_min_interval_seconds": 3}
        few = {"agent_keep_last": 5, "agent_keep_daily": 1, "agent_keep_weekly": 0, "agent_keep_monthly": 0}
        self._machine = Machine(folder, **quick, **few)
        self._folder = folder
        # The real command as a process of its own, and the code that lies here.
        self._machine.environ |= {"PYTHONPATH": str(ROOT), zygote.EXECUTE: "1"}
        self._settings_file = self._machine.home / ".claude" / "settings" / "local.yaml"
        self._settings_file.parent.mkdir(parents=True)
        self._changed: dict[str, int] = {}
        self._hangups = self._hooks = 0
        self.wrong: list[str] = []

    def run(self, seconds: float) -> list[Taken]:
        """Let it work for so long; return the samples."""
        machine, samples = self._machine, list[Taken]()
        socket = machine.state / "control.sock"
        with Writer(machine.data, "--interval", "1") as writer, machine.run() as agent:
            started = time.monotonic()
            duties = {
                SAMPLE_SECONDS: lambda: samples.append(taken(agent.pid, machine.state, started)),
                SCRAPE_SECONDS: lambda: self._scrape(socket),
                HOOK_SECONDS: self._hook,
                HANGUP_SECONDS: lambda: self._hang_up(agent, anew=time.monotonic() < started + seconds / FIFTHS),
                TIDY_SECONDS + 1: self._tidy,
            }
            with Reader(socket) as reader:
                self._do(duties, started, seconds, agent)
                self._quiet_end(writer, agent)
            self._judge(agent, reader)
        return samples

    def _do(self, duties: dict[float, Callable[[], object]], started: float, seconds: float, agent: Running) -> None:
        due = dict.fromkeys(duties, started)
        for period in duties:
            due[period] += period
        while (now := time.monotonic()) < started + seconds and agent.process.poll() is None:
            period = min(due, key=lambda period: due[period])
            if due[period] > now:
                time.sleep(min(due[period] - now, started + seconds - now))
                continue
            due[period] += period
            duties[period]()

    def _scrape(self, socket: Path) -> None:
        if b"akosha_agent_build_info" not in asked(socket, "/metrics"):
            self.wrong.append("no metrics where they should be")

    def _hook(self) -> None:
        self._hooks += 1
        command = hook_command(Settings(agent_state_dir=self._machine.state))
        reported = f'{{"session_id": "soak-{self._hooks}", "reason": "other"}}'
        done = subprocess.run(
            shlex.split(str(command)), input=reported.encode(), env=self._machine.environ, capture_output=True
        )
        if done.returncode or done.stdout or done.stderr:
            self.wrong.append(f"hook: {done}")

    def _hang_up(self, agent: Running, *, anew: bool) -> None:
        self._hangups += 1
        self._changed["akosha_agent_rescan_seconds" if anew else "akosha_agent_log_file_mb"] = 60 + self._hangups
        self._settings_file.write_text("".join(f"{key}: {value}\n" for key, value in self._changed.items()))
        agent.process.send_signal(signal.SIGHUP)

    def _tidy(self) -> None:
        uploads = sorted((self._machine.bucket / "systems").glob("*/uploads/*"))
        for old in uploads[:-KEPT_UPLOADS]:
            shutil.rmtree(old, ignore_errors=True)

    def _quiet_end(self, writer: Writer, agent: Running) -> None:
        """End the session; the last commit must be in the bucket soon."""
        if writer.close():
            self.wrong.append("the writer failed")
        deadline = time.monotonic() + _AFTERWARDS_SECONDS
        found = Finding(-1, ())
        while agent.process.poll() is None and time.monotonic() < deadline:
            found = self._arrived()
            if found == Finding(writer.commits, ()):
                return
            time.sleep(1)
        self.wrong.append(f"the last commit is {writer.commits}; in the bucket is {found}")

    def _arrived(self) -> Finding:
        newest = self._machine.manifests[-1:]
        if not newest:
            return Finding(-1, ())
        folder = self._folder / "arrived"
        shutil.rmtree(folder, ignore_errors=True)
        upload_contents.unpack(newest[0], self._machine.object, folder)
        with Checker() as checker:
            return checker.check(folder / "reflection.duckdb")

    def _judge(self, agent: Running, reader: Reader) -> None:
        lines = agent.log.seen
        if reader.wrong:
            self.wrong.append(f"the reader of events: {reader.wrong}")
        ended = sum(line.get("event") == "session_ended" for line in lines)
        if ended != self._hooks:
            self.wrong.append(f"{self._hooks} sessions ended, and {ended} were heard of")
        reloads = sum(line.get("event") in ("settings_changed", "settings_unchanged") for line in lines)
        if reloads != self._hangups:
            self.wrong.append(f"{self._hangups} hangups, and {reloads} were heard")
        said: dict[str, int] = {}
        for line in lines:
            if line.get("level") in _BAD or "text" in line:
                name = f"{line.get('level', 'text')} {line.get('event', line.get('text'))}"
                said[name] = said.get(name, 0) + 1
        print(f"events read: {reader.results}, progress {reader.progress}, streams {reader.returns + 1}")
        print(f"sessions ended: {self._hooks}, hangups: {self._hangups}")
        print(f"warnings and errors in the log: {said or 'none'}")


def show(samples: list[Taken], wrong: list[str]) -> int:
    """Print the table and the verdict; return the exit status."""
    found = verdict(samples)
    minutes = samples[-1].seconds / 60
    table = Table(title=f"akosha-agent at work for {minutes:.0f} min on {this_machine()}", title_justify="left")
    table.add_column("median of each fifth")
    for number in range(FIFTHS):
        table.add_column(str(number + 1), justify="right")
    table.add_column("most", justify="right")
    table.add_column("2 to 5")
    names = {
        "own": "PSS of the agent's process",
        "anonymous": "of that, its own alone",
        "tree": "PSS with its children",
        "descriptors": "open descriptors",
        "threads": "threads",
        "children": "child processes",
        "ledger": "ledger on disk",
        "left": "files in staging",
    }
    for name, words in names.items():
        values = found.medians[name]
        most = max(getattr(sample, name) for sample in samples)
        says = "GROWN" if name in found.grown else "flat" if name in JUDGED else ""
        table.add_row(words, *(shown(name, value) for value in values), shown(name, most), says)
    (Console() if sys.stdout.isatty() else Console(width=150)).print(table)
    for what in wrong:
        print(f"wrong: {what}")
    flat = not found.grown
    print("flat" if flat else f"not flat: {', '.join(found.grown)}")
    return 0 if flat and not wrong else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help=f"how long, {SHORTEST_MINUTES:g} at least")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where all samples go, as CSV")
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists() or arguments.minutes < SHORTEST_MINUTES:
        print(f"{SHORTEST_MINUTES:g} minutes at least, on Linux, whose /proc it reads", file=sys.stderr)
        return 2
    os.environ[zygote.EXECUTE] = "1"
    with tempfile.TemporaryDirectory(prefix="akosha-soak-") as folder:
        soak = Soak(Path(folder))
        samples = soak.run(arguments.minutes * 60)
    if arguments.keep:
        with arguments.keep.open("w", newline="") as file:
            rows = csv.DictWriter(file, list(asdict(samples[0])))
            rows.writeheader()
            rows.writerows(map(asdict, samples))
    return show(samples, soak.wrong)


if __name__ == "__main__":
    sys.exit(main())
