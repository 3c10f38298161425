"""Samples of the resources that an agent uses, from /proc; and the verdict whether they grow."""

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
class Usage:
    """One sample. `own` and `anonymous`: PSS of the agent's process in bytes; `tree`: PSS with its children.

    `ledger`: bytes on disk, with the WAL. `left`: files in the staging directory.
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


def sample(pid: int, state: Path, started: float) -> Usage:
    """Take a sample. Raises OSError if the process has ended."""
    own = rollup(pid)
    children = list(family(pid))[1:]
    tree = own["Pss"]
    for child in children:
        with suppress(OSError):  # it has ended
            tree += rollup(child)["Pss"]
    status = Path(f"/proc/{pid}/status").read_text()
    return Usage(
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


def _memory(baseline: float) -> float:
    return baseline * 0.05 + 4 * MEBIBYTE


def _two(baseline: float) -> float:
    return 2


JUDGED: Mapping[str, Callable[[float], float]] = {
    "own": _memory,
    "anonymous": _memory,
    "descriptors": _two,
    "threads": _two,
    "children": _two,
}
"""Columns that must not grow, with the tolerance from the median of the second fifth of the time to that of the last.

The memory of children is not judged, because each lives for one sync: the median depends on how often one runs. Their
number is judged.
"""

SHOWN = (*JUDGED, "tree", "ledger", "left")


@dataclass(frozen=True)
class Growth:
    """`medians`: of each column, one per fifth of the time. `grown`: the columns that grew beyond their tolerance."""

    medians: Mapping[str, tuple[float, ...]]
    grown: tuple[str, ...]


def verdict(samples: Sequence[Usage]) -> Growth:
    """Compare the second fifth, after all code is loaded, with the last. Raises ValueError if `samples` are too few."""
    if len(samples) < 2 * FIFTHS:
        raise ValueError(f"{len(samples)} samples are too few")
    edges = [len(samples) * fifth // FIFTHS for fifth in range(FIFTHS + 1)]
    fifths = [samples[start:end] for start, end in itertools.pairwise(edges)]
    medians = {
        name: tuple(statistics.median(getattr(sample, name) for sample in fifth) for fifth in fifths) for name in SHOWN
    }
    grown = tuple(
        name for name, tolerance in JUDGED.items() if medians[name][-1] - medians[name][1] > tolerance(medians[name][1])
    )
    return Growth(medians, grown)


def formatted(name: str, value: float) -> str:
    """Return a value as text, with its unit."""
    return mebibytes(value) if name in ("own", "anonymous", "tree", "ledger") else f"{value:g}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
