"""Comparison of measurements taken in pairs, so that other load affects both."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_DEVIATIONS = 1.96
"""Standard deviations on each side of the mean that contain 95 % of a normal distribution."""


@dataclass(frozen=True)
class Difference:
    """The median of the differences within pairs, in seconds; its 95 % confidence interval is `low` to `high`."""

    median: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Return the difference as text in milliseconds."""
        return f"{self.median * 1000:+.1f} ms (95 %: {self.low * 1000:+.1f} to {self.high * 1000:+.1f})"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return second minus first. The interval comes from ranks, so that no distribution is assumed."""
    differences = sorted(after - before for before, after in zip(first, second, strict=True))
    margin = math.ceil(_DEVIATIONS * math.sqrt(len(differences)) / 2)
    low = max(len(differences) // 2 - margin, 0)
    return Difference(statistics.median(differences), differences[low], differences[-1 - low])


def milliseconds(times: Sequence[float]) -> str:
    """Return the median of times in seconds, and their quartiles, as text in milliseconds."""
    if len(times) < 4:
        return f"{statistics.median(times) * 1000:.1f} ms"
    low, median, high = statistics.quantiles(times, n=4)
    return f"{median * 1000:.1f} ms ({low * 1000:.1f}-{high * 1000:.1f})"
