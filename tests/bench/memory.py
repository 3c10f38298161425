"""Memory of all processes of the agent, as PSS: shared memory is counted once."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.bench.databases import Databases
from tests.bench.report import MEBIBYTE, Line, mebibytes
from tests.support.machine import Machine, Running

CHILDREN = {"DuckDB": b"agent.adapters.duckdb.child", "patches": b"agent.adapters.patches.child"}
"""The children that have a memory limit of their own: their module by what they do."""

GROWTH_BAR = 50 * MEBIBYTE
CHILD_BAR = 128 * MEBIBYTE
SAME_WITHIN = 10 * MEBIBYTE
SMALL = 12
_SETTLED_SECONDS = 3.0
_STEP_SECONDS = 0.005


class Watch:
    """Context manager that samples a process and its children on a thread, every `step` seconds."""

    def __init__(self, pid: int, step: float) -> None:
        self._pid, self._step = pid, step
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pss", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def sample(self) -> None:
        """Take one sample."""
        raise NotImplementedError

    def _watch(self) -> None:
        while not self._stopping.wait(self._step):
            self.sample()


class PssWatch(Watch):
    """Samples of the memory of the agent and of its children that have a limit, in bytes.

    `agent` is the total PSS of a process and its other children. `children` has the anonymous memory of the children
    with a limit, by their names in CHILDREN: DuckDB's library, a mapped file of 50 MiB, is not counted, because the
    kernel may drop it.
    """

    def __init__(self, pid: int) -> None:
        self.agent: list[int] = []
        self.children: dict[str, list[int]] = {name: [] for name in CHILDREN}
        self._names: dict[int, str] = {}
        super().__init__(pid, _STEP_SECONDS)

    def sample(self) -> None:
        agent, children = 0, dict.fromkeys(CHILDREN, 0)
        for pid in family(self._pid):
            try:
                memory = rollup(pid)
                # Read after the memory, and remembered: a child has this name from its exec until it starts to end.
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if name := next((name for name, module in CHILDREN.items() if module in command), None):
                    self._names[pid] = name
            except OSError:
                continue  # it has ended
            if pid in self._names:
                children[self._names[pid]] += memory["Pss_Anon"]
            else:
                agent += memory["Pss"]
        self.agent.append(agent)
        for name, anonymous in children.items():
            self.children[name].append(anonymous)


def family(pid: int) -> Iterator[int]:
    """Yield the PIDs of a process and its descendants, without those that end meanwhile."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


def rollup(pid: int) -> dict[str, int]:
    """Return the totals of smaps_rollup in bytes; they are 0 while a process ends."""
    totals = {"Pss": 0, "Pss_Anon": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in totals:
            totals[name] = int(rest.split()[0]) * 1024
    return totals


def idle_pss(pid: int) -> float:
    """Return the PSS of an idle process: the median over some seconds."""
    with PssWatch(pid) as watch:
        time.sleep(_SETTLED_SECONDS)
    return statistics.median(watch.agent)


def growth(machine: Machine, databases: Databases, size: int) -> tuple[float, PssWatch]:
    """Make a small upload, then one of `size` MiB; return the PSS between them, and the watch of the second."""
    databases.copy_to(SMALL, machine.data)
    with machine.run() as agent:
        wait_for_uploads(agent, 1)
        before = idle_pss(agent.pid)
        with PssWatch(agent.pid) as watch:
            databases.copy_to(size, machine.data)
            wait_for_uploads(agent, 2)
    return before, watch


def wait_for_uploads(agent: Running, count: int) -> None:
    """Wait for `count` uploads of the agent. Raises RuntimeError if it logs a warning or an error."""

    def is_relevant(line: dict) -> bool:
        return line.get("event") == "sync_succeeded" or line.get("level") in ("warning", "error")

    for number in range(1, count + 1):
        line = agent.log.wait(is_relevant, number)[number - 1]
        if line["event"] != "sync_succeeded":
            raise RuntimeError(f"an upload failed: {line}")


def lines(target: str, measured: dict[int, tuple[float, PssWatch]]) -> list[Line]:
    """Return the lines of the table for a target. `measured` maps sizes to results of `growth`."""
    table, grown = [], {}
    for size, (before, watch) in measured.items():
        grown[size] = max(watch.agent) - before
        table.append(
            Line(
                f"memory: growth over {mebibytes(before)}, upload of {size} MiB to {target}",
                mebibytes(grown[size]),
                grown[size] / GROWTH_BAR,
                f"at most {mebibytes(GROWTH_BAR)}",
                grown[size] <= GROWTH_BAR,
            )
        )
    small, large = min(grown), max(grown)
    table.append(
        Line(
            f"memory: growth at {large} MiB compared with {small} MiB, to {target}",
            mebibytes(grown[large] - grown[small]),
            grown[large] / grown[small],
            f"the same, within {mebibytes(SAME_WITHIN)}",
            abs(grown[large] - grown[small]) <= SAME_WITHIN,
        )
    )
    for name in CHILDREN:
        peak = max(max(watch.children[name]) for _, watch in measured.values())
        table.append(
            Line(
                f"memory: allocated by the child for {name}, {target}",
                mebibytes(peak),
                peak / CHILD_BAR,
                f"limited to {mebibytes(CHILD_BAR)}",
                peak <= CHILD_BAR,
            )
        )
    return table
