"""What an existing stream lacks, and the command that changes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

DEFAULT_CONSUMERS = 1000
"""Consumers that nats-server 2.15 allows a stream that sets no limit."""

_DAY, _MINUTE = 86_400, 60


@dataclass(frozen=True, slots=True)
class Lack:
    """A setting of a stream that can lose events. `option`: of `nats stream edit`, "" if only a new stream helps."""

    found: str
    option: str


def lacks(found: StreamConfig, wanted: StreamConfig) -> list[Lack]:
    """Compare a stream with the one that the agent would create. Subjects are not compared."""
    return [*_of_storage(found), *_of_limits(found, wanted)]


def cure(stream: str, found: Sequence[Lack]) -> str:
    """Return the commands for everything that a stream lacks."""
    if any(not lack.option for lack in found):
        return (
            f"nats stream rm {stream}: this deletes its events. An agent that may create streams creates it again; "
            "agents publish the results of the last seven days again"
        )
    return f"nats stream edit {stream} {' '.join(lack.option for lack in found)}"


def _of_storage(found: StreamConfig) -> Iterator[Lack]:
    if not found.allow_direct:
        yield Lack(
            "does not allow direct gets: session ends that are published while an agent is away are not found",
            "--allow-direct",
        )
    if found.retention == RetentionPolicy.INTEREST:
        yield Lack("deletes events that no consumer waits for", "--retention=limits")
    elif found.retention == RetentionPolicy.WORK_QUEUE:
        yield Lack("deletes each event when one consumer has acknowledged it", "")
    if found.storage == StorageType.MEMORY:
        yield Lack("is in memory: its events are lost when the server restarts", "")
    if found.discard == DiscardPolicy.NEW:
        yield Lack("refuses events when it is full, instead of deleting the oldest", "--discard=old")
    if found.no_ack:
        yield Lack("does not confirm events: results stay in the agents' outboxes", "--ack")


def _of_limits(found: StreamConfig, wanted: StreamConfig) -> Iterator[Lack]:
    consumers = _limit(found.max_consumers)
    if (consumers or DEFAULT_CONSUMERS) < (wanted.max_consumers or 0):
        limit = f"{consumers:,}" if consumers else f"the server's default of {DEFAULT_CONSUMERS:,}"
        yield Lack(f"allows no more consumers than {limit}", f"--max-consumers={wanted.max_consumers}")
    if 0 < _limit(found.max_age) < (wanted.max_age or 0):
        yield Lack(f"keeps events for {found.max_age:g} s only", f"--max-age={(wanted.max_age or 0) / _DAY:g}d")
    if 0 < _limit(found.max_bytes) < (wanted.max_bytes or 0):
        yield Lack(f"keeps {found.max_bytes:,} bytes only", f"--max-bytes={wanted.max_bytes}")
    if count := _limit(found.max_msgs):
        yield Lack(f"keeps {count:,} events only", "--max-msgs=-1")
    if count := _limit(found.max_msgs_per_subject):
        yield Lack(f"keeps {count:,} events per subject only", "--max-msgs-per-subject=-1")
    if _limit(found.duplicate_window) < (wanted.duplicate_window or 0):
        minutes = f"{(wanted.duplicate_window or 0) / _MINUTE:g}m"
        yield Lack(
            f"forgets IDs after {found.duplicate_window:g} s: events published again are stored twice",
            f"--dupe-window={minutes}",
        )


def _limit(value: float | None) -> float:
    """Return a limit, 0 if there is none."""
    return value if value is not None and value > 0 else 0
