"""From the end of the quiet time to the request: the agent's own delay of a change."""

import statistics
from datetime import datetime
from pathlib import Path

from tests.bench.memory import wait_for_uploads
from tests.bench.report import Line
from tests.support.machine import Machine
from tests.support.session_buddy import Writer

BAR_SECONDS = 0.1
QUIET_SECONDS = 2.0
"""The default."""


def latencies(folder: Path, rounds: int, *, quiet: float) -> list[float]:
    """Commit and sync `rounds` times; return the seconds from the end of the quiet time to each request.

    The time of a commit is the mtime of its file. The time of a request is that of the log line after publishing.
    """
    machine = Machine(folder, agent_quiet_seconds=quiet, agent_min_interval_seconds=0)
    machine.write(commits=20)
    delays = []
    with Writer(machine.data, "--paused") as writer, machine.run() as agent:
        uploads = 1
        wait_for_uploads(agent, uploads)
        for _ in range(rounds):
            writer.run("commit 1")
            written = max(path.stat().st_mtime for path in machine.data.iterdir())
            *_, line = agent.logged("sync_requested", uploads + 1)
            assert line["reason"] == "file_change", line
            delays.append(datetime.fromisoformat(line["timestamp"]).timestamp() - written - quiet)
            uploads += 1
            wait_for_uploads(agent, uploads)
    return delays


def lines(folder: Path, rounds: int) -> list[Line]:
    """Return the line of the table."""
    delays = latencies(folder, rounds, quiet=QUIET_SECONDS)
    median = statistics.median(delays)
    return [
        Line(
            f"end of the quiet time ({QUIET_SECONDS:g} s) to SyncRequested, median of {rounds}",
            f"{median * 1000:.0f} ms ({min(delays) * 1000:.0f}-{max(delays) * 1000:.0f})",
            median / BAR_SECONDS,
            f"under {BAR_SECONDS * 1000:.0f} ms",
            median < BAR_SECONDS,
        )
    ]
