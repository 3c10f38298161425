"""From the end of the quiet time to the request: how long a change waits that nothing makes wait."""

import statistics
from datetime import datetime
from pathlib import Path

from tests.bench.memory import uploaded
from tests.bench.report import Line
from tests.support.machine import Machine
from tests.support.session_buddy import Writer

BAR_SECONDS = 0.1
QUIET_SECONDS = 2.0
"""The default."""


def latencies(folder: Path, rounds: int, *, quiet: float) -> list[float]:
    """Have a process commit, and the agent sync, so many times; return the seconds from quiet's end to the request.

    The commit's time is its file's mtime, the request's that of the log line, which follows the publishing.
    """
    machine = Machine(folder, agent_quiet_seconds=quiet, agent_min_interval_seconds=0)
    machine.write(commits=20)
    found = []
    with Writer(machine.data, "--paused") as writer, machine.run() as agent:
        done = 1
        uploaded(agent, done)
        for _ in range(rounds):
            writer.run("commit 1")
            written = max(path.stat().st_mtime for path in machine.data.iterdir())
            *_, line = agent.logged("sync_requested", done + 1)
            assert line["reason"] == "file_change", line
            found.append(datetime.fromisoformat(line["timestamp"]).timestamp() - written - quiet)
            done += 1
            uploaded(agent, done)
    return found


def lines(folder: Path, rounds: int) -> list[Line]:
    """Return the line of the table."""
    found = latencies(folder, rounds, quiet=QUIET_SECONDS)
    median = statistics.median(found)
    return [
        Line(
            f"end of the quiet time ({QUIET_SECONDS:g} s) to SyncRequested, median of {rounds}",
            f"{median * 1000:.0f} ms ({min(found) * 1000:.0f}-{max(found) * 1000:.0f})",
            median / BAR_SECONDS,
            f"under {BAR_SECONDS * 1000:.0f} ms",
            median < BAR_SECONDS,
        )
    ]
