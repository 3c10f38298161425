"""Peak memory of a push by the http method: all processes of the agent, with the child that runs DuckDB.

    python -m tests.bench.http_memory

runs a server that accepts memories and stores none, and prints its address. It stops at the end of standard input.
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


class TotalPssWatch(Watch):
    """The total PSS of all processes, in bytes."""

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


class DiscardingAkosha(Akosha):
    """Answers that it stored the memories, and discards them."""

    def _store_all(self, memories: list[dict[str, Any]]) -> Mapping[str, object]:
        count = len(memories)
        return {"status": "completed", "total": count, "stored": count, "failed": 0, "errors": []}


@contextmanager
def running_discarding_akosha() -> Iterator[str]:
    """Run one in a separate process; yield its URL."""
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
    """Push `count` memories; return the peak PSS in bytes. Raises RuntimeError if a memory was not sent."""
    machine = Machine(folder, force_method="http", http_endpoint=url, cloud_endpoint=None)
    http_push.add(machine.data / REFLECTION, 0, count)
    with machine.started("sync", "--json", "--method", "http") as syncing:
        with TotalPssWatch(syncing.pid) as watch:
            syncing.process.wait()
        result = syncing.end()
    (machine.data / REFLECTION).unlink()
    if result.code or result.json["memories"] != count:
        raise RuntimeError(f"not all memories were sent: {result}")
    return max(watch.sums)


def lines(folder: Path, counts: Sequence[int]) -> list[Line]:
    """Push databases of these sizes, the small one first."""
    with running_discarding_akosha() as url:
        peaks = {count: peak(folder / str(count), url, count) for count in counts}
    peak_lines = [
        Line(
            f"memory: push of {count:,} memories, peak of all processes",
            mebibytes(size),
            size / PEAK_BAR,
            f"at most {mebibytes(PEAK_BAR)}",
            size <= PEAK_BAR,
        )
        for count, size in peaks.items()
    ]
    small, large = min(peaks), max(peaks)
    increase = peaks[large] - peaks[small]
    comparison = Line(
        f"memory: push of {large:,} memories compared with {small:,}",
        mebibytes(increase),
        peaks[large] / peaks[small],
        f"not more, within {mebibytes(SAME_WITHIN)}",
        increase <= SAME_WITHIN,
    )
    return [*peak_lines, comparison]


if __name__ == "__main__":
    with DiscardingAkosha() as akosha:
        print(akosha.url, flush=True)
        sys.stdin.read()
