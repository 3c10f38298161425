"""What all processes of the agent take, as PSS: memory that several share is counted once."""

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

CHILD = b"agent.adapters.duckdb.child"
GROWTH_BAR = 50 * MEBIBYTE
CHILD_BAR = 128 * MEBIBYTE
SAME_WITHIN = 10 * MEBIBYTE
SMALL = 12
_SETTLED_SECONDS = 3.0
_STEP_SECONDS = 0.005


class Watch:
    """Samples a process and its children on a thread, every `step` seconds for as long as the block runs."""

    def __init__(self, pid: int, step: float) -> None:
        self._pid, self._step = pid, step
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pss", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def sample(self) -> None:
        """Take one sample."""
        raise NotImplementedError

    def _watch(self) -> None:
        while not self._over.wait(self._step):
            self.sample()


class PssWatch(Watch):
    """What of a process and its children is the agent's, and what the engine's.

    `agent` are the sums of all of them but the child that runs the engine, in bytes. `engine` is what that child has
    allocated: the engine's library, a file of 50 MiB that is mapped, is the system's to keep or to drop.
    """

    def __init__(self, pid: int) -> None:
        self.agent: list[int] = []
        self.engine: list[int] = []
        self._engines: set[int] = set()
        super().__init__(pid, _STEP_SECONDS)

    def sample(self) -> None:
        agent = engine = 0
        for pid in family(self._pid):
            try:
                memory = rollup(pid)
                # Afterwards, and for good: a process becomes the engine's at once, and when it ends forgets its name.
                if CHILD in Path(f"/proc/{pid}/cmdline").read_bytes():
                    self._engines.add(pid)
            except OSError:
                continue  # it has ended
            if pid in self._engines:
                engine += memory["Pss_Anon"]
            else:
                agent += memory["Pss"]
        self.agent.append(agent)
        self.engine.append(engine)


def family(pid: int) -> Iterator[int]:
    """Yield a process and all its children's children; what ends meanwhile is left out."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


def rollup(pid: int) -> dict[str, int]:
    """Return the kernel's sums over all that a process has mapped, in bytes; all 0 for one that is just ending."""
    found = {"Pss": 0, "Pss_Anon": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found


def settled(pid: int) -> float:
    """Return the PSS of a process that has nothing to do: the median over some seconds."""
    with PssWatch(pid) as watch:
        time.sleep(_SETTLED_SECONDS)
    return statistics.median(watch.agent)


def growth(machine: Machine, databases: Databases, size: int) -> tuple[float, PssWatch]:
    """Run an agent through a first small upload, then one of `size` MiB; return the PSS between them, and the watch."""
    databases.place(SMALL, machine.data)
    with machine.run() as agent:
        uploaded(agent, 1)
        before = settled(agent.pid)
        with PssWatch(agent.pid) as watch:
            databases.place(size, machine.data)
            uploaded(agent, 2)
    return before, watch


def uploaded(agent: Running, count: int) -> None:
    """Wait until the agent has made so many uploads. Raises RuntimeError where anything went wrong on the way."""

    def reported(line: dict) -> bool:
        return line.get("event") == "sync_succeeded" or line.get("level") in ("warning", "error")

    for number in range(1, count + 1):
        line = agent.log.wait(reported, number)[number - 1]
        if line["event"] != "sync_succeeded":
            raise RuntimeError(f"an upload did not go smoothly: {line}")


def lines(where: str, measured: dict[int, tuple[float, PssWatch]]) -> list[Line]:
    """Return the lines of the table for one kind of target: size -> what `growth` returned."""
    found, grown = [], {}
    for size, (before, watch) in measured.items():
        grown[size] = max(watch.agent) - before
        found.append(
            Line(
                f"memory: growth over {mebibytes(before)}, upload of {size} MiB to {where}",
                mebibytes(grown[size]),
                grown[size] / GROWTH_BAR,
                f"at most {mebibytes(GROWTH_BAR)}",
                grown[size] <= GROWTH_BAR,
            )
        )
    small, large = min(grown), max(grown)
    found.append(
        Line(
            f"memory: growth at {large} MiB against {small} MiB, to {where}",
            mebibytes(grown[large] - grown[small]),
            grown[large] / grown[small],
            f"the same, within {mebibytes(SAME_WITHIN)}",
            abs(grown[large] - grown[small]) <= SAME_WITHIN,
        )
    )
    peak = max(max(watch.engine) for _, watch in measured.values())
    found.append(
        Line(
            f"memory: the child with the engine, what it allocates, {where}",
            mebibytes(peak),
            peak / CHILD_BAR,
            f"limited to {mebibytes(CHILD_BAR)}",
            peak <= CHILD_BAR,
        )
    )
    return found
