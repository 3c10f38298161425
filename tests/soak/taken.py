"""What an agent takes of the machine at one moment, as Linux tells it; and whether that stays the same."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.memory import family, rollup
from tests.bench.report import MEBIBYTE, mebibytes

FIFTHS = 5


@dataclass(frozen=True)
class Taken:
    """`own`, `anonymous`: of the agent's process alone, in bytes of PSS; `tree`: of it and its children.

    `ledger`: bytes on disk, the WAL included. `left`: files in the staging directory.
    """

    seconds: float
    own: int
    anonymous: int
    tree: int
    descriptors: int
    threads: int
    children: int
    ledger: int
    left: int


def taken(pid: int, state: Path, started: float) -> Taken:
    """Look once. Raises OSError where the process has ended."""
    own = rollup(pid)
    children = list(family(pid))[1:]
    tree = own["Pss"]
    for child in children:
        with suppress(OSError):  # it has ended
            tree += rollup(child)["Pss"]
    status = Path(f"/proc/{pid}/status").read_text()
    return Taken(
        seconds=time.monotonic() - started,
        own=own["Pss"],
        anonymous=own["Pss_Anon"],
        tree=tree,
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=int(status.partition("\nThreads:")[2].split()[0]),
        children=len(children),
        ledger=sum(_size(path) for path in state.glob("ledger.sqlite*")),
        left=sum(1 for path in (state / "staging").rglob("*") if path.is_file()),
    )


# -------------------------------------------------------------------------------------------------------- the verdict


def _memory(before: float) -> float:
    return before * 0.05 + 4 * MEBIBYTE


def _two(before: float) -> float:
    return 2


JUDGED: Mapping[str, Callable[[float], float]] = {
    "own": _memory,
    "anonymous": _memory,
    "descriptors": _two,
    "threads": _two,
    "children": _two,
}
"""What may grow by how much from the second fifth of the time to the last: medians.

Not what children take, who live for one sync each: that says how much of the time there is one. Their number must not
grow.
"""

SHOWN = (*JUDGED, "tree", "ledger", "left")


@dataclass(frozen=True)
class Growth:
    """`medians`: of each column, one for each fifth of the time. `grown`: the columns that did not stay the same."""

    medians: Mapping[str, tuple[float, ...]]
    grown: tuple[str, ...]


def verdict(samples: Sequence[Taken]) -> Growth:
    """Compare the second fifth, when all that is loaded once has been, with the last. Raises ValueError for too few."""
    if len(samples) < 2 * FIFTHS:
        raise ValueError(f"{len(samples)} samples are too few to tell")
    edges = [len(samples) * fifth // FIFTHS for fifth in range(FIFTHS + 1)]
    fifths = [samples[start:end] for start, end in itertools.pairwise(edges)]
    medians = {
        name: tuple(statistics.median(getattr(sample, name) for sample in fifth) for fifth in fifths) for name in SHOWN
    }
    grown = tuple(name for name, bar in JUDGED.items() if medians[name][-1] - medians[name][1] > bar(medians[name][1]))
    return Growth(medians, grown)


def shown(name: str, value: float) -> str:
    """Return a value as people read it."""
    return mebibytes(value) if name in ("own", "anonymous", "tree", "ledger") else f"{value:g}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
