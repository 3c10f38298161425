"""Two ways of doing the same thing, taken turn by turn: what one costs over the other, whatever disturbs both."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_WIDE = 1.96
"""Standard deviations to each side that hold 95 %."""


@dataclass(frozen=True)
class Difference:
    """The median of the differences within each pair; with 95 % certainty the true one lies from `low` to `high`."""

    median: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """As milliseconds."""
        return f"{self.median * 1000:+.1f} ms (95 %: {self.low * 1000:+.1f} to {self.high * 1000:+.1f})"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return what the second has over the first. Nothing is assumed of how they vary: the ranks bound the median."""
    found = sorted(after - before for before, after in zip(first, second, strict=True))
    margin = math.ceil(_WIDE * math.sqrt(len(found)) / 2)
    low = max(len(found) // 2 - margin, 0)
    return Difference(statistics.median(found), found[low], found[-1 - low])


def milliseconds(times: Sequence[float]) -> str:
    """Return the median of several times in seconds, and the range of the half of them around it."""
    if len(times) < 4:
        return f"{statistics.median(times) * 1000:.1f} ms"
    low, median, high = statistics.quantiles(times, n=4)
    return f"{median * 1000:.1f} ms ({low * 1000:.1f}-{high * 1000:.1f})"
