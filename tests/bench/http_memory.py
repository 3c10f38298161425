"""What a push by the http method takes at its peak: all processes of the agent, the child with the engine among them.

    python -m tests.bench.http_memory

runs a server that takes memories and keeps none, and prints its address. Ends with its standard input.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import http_push
from tests.bench.memory import Watch, family, rollup
from tests.bench.report import MEBIBYTE, Line, mebibytes
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha
from tests.support.session_buddy import REFLECTION

PEAK_BAR = 400 * MEBIBYTE
SAME_WITHIN = 20 * MEBIBYTE
_STEP_SECONDS = 0.05


class WholeWatch(Watch):
    """The sums of all processes, as PSS."""

    def __init__(self, pid: int) -> None:
        self.sums: list[int] = []
        super().__init__(pid, _STEP_SECONDS)

    def sample(self) -> None:
        total = 0
        for pid in family(self._pid):
            try:
                total += rollup(pid)["Pss"]
            except OSError:
                continue  # it has ended
        self.sums.append(total)


class Forgetful(Akosha):
    """Says that it has stored what it was given."""

    def _store_all(self, memories: list[dict[str, Any]]) -> Mapping[str, object]:
        count = len(memories)
        return {"status": "completed", "total": count, "stored": count, "failed": 0, "errors": []}


@contextmanager
def running_forgetful() -> Iterator[str]:
    """Run one in a process of its own; yield its address."""
    command = [sys.executable, "-m", "tests.bench.http_memory"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=http_push.ROOT, text=True, **pipes) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def peak(folder: Path, url: str, count: int) -> int:
    """Push so many memories; return the most that was taken, in bytes. Raises RuntimeError where not all went."""
    machine = Machine(folder, force_method="http", http_endpoint=url, cloud_endpoint=None)
    http_push.add(machine.data / REFLECTION, 0, count)
    with machine.started("sync", "--json", "--method", "http") as syncing:
        with WholeWatch(syncing.pid) as watch:
            syncing.process.wait()
        done = syncing.end()
    (machine.data / REFLECTION).unlink()
    if done.code or done.json["memories"] != count:
        raise RuntimeError(f"not all was pushed: {done}")
    return max(watch.sums)


def lines(folder: Path, counts: Sequence[int]) -> list[Line]:
    """Push databases of these sizes, the small one first."""
    with running_forgetful() as url:
        peaks = {count: peak(folder / str(count), url, count) for count in counts}
    found = [
        Line(
            f"memory: push of {count:,} memories, all processes at their peak",
            mebibytes(size),
            size / PEAK_BAR,
            f"at most {mebibytes(PEAK_BAR)}",
            size <= PEAK_BAR,
        )
        for count, size in peaks.items()
    ]
    small, large = min(peaks), max(peaks)
    more = peaks[large] - peaks[small]
    same = Line(
        f"memory: push of {large:,} memories against {small:,}",
        mebibytes(more),
        peaks[large] / peaks[small],
        f"not more, within {mebibytes(SAME_WITHIN)}",
        more <= SAME_WITHIN,
    )
    return [*found, same]


if __name__ == "__main__":
    with Forgetful() as akosha:
        print(akosha.url, flush=True)
        sys.stdin.read()
