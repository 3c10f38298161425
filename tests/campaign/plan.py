"""Which rounds a campaign plays: chunks of rows, the same for a seed on every machine."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from tests.campaign.faults import Fault

CHUNK_ROUNDS = 40
"""Most rounds of a chunk. Chunks of one row are played in parallel."""

PROCESSES = 2
"""Number of chunks that are played at once, unless the caller chooses another. The minutes of a plan count for it."""

START_SECONDS = 5.0
"""Typical time until the agent and the servers of a chunk have started."""

_PARTS = 1000


@dataclass(frozen=True)
class Chunk:
    """Rounds of a row in a world of their own. `number` counts from 1; `seconds` is the typical duration."""

    row: str
    number: int
    rounds: int
    seconds: float


def chunks(kind: type[Fault], rounds: int) -> Iterator[Chunk]:
    """Divide rounds of a row into chunks. A smaller number of rounds has the same chunks, without the last rounds."""
    size = _divided(kind.rounds, _divided(kind.rounds, CHUNK_ROUNDS))
    for number, before in enumerate(range(0, rounds, size), 1):
        count = min(size, rounds - before)
        yield Chunk(kind.row, number, count, START_SECONDS + count * kind.typical_seconds)


def all_rounds(kinds: Sequence[type[Fault]]) -> list[Chunk]:
    """Return the chunks of a full campaign."""
    return _part(kinds, _PARTS)


def spread(kinds: Sequence[type[Fault]], minutes: float) -> list[Chunk]:
    """Return the chunks that take about so many minutes: the same part of the rounds of each row, at least one round.

    The result does not depend on the number of processes that play them, so that a seed always gives the same rounds.
    """
    budget = minutes * 60 * PROCESSES
    return _part(kinds, bisect_right(range(_PARTS + 1), budget, key=lambda part: seconds(_part(kinds, part))) - 1)


def seconds(plan: Sequence[Chunk]) -> float:
    """Return the typical duration of a plan in one process."""
    return sum(chunk.seconds for chunk in plan)


def _part(kinds: Sequence[type[Fault]], part: int) -> list[Chunk]:
    return [*chain.from_iterable(chunks(kind, max(1, kind.rounds * part // _PARTS)) for kind in kinds)]


def _divided(count: int, by: int) -> int:
    """Divide, and round up."""
    return -(-count // by)
