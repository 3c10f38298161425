"""Counters, and values that are computed when metrics are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.domain.events import SyncResult


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMetrics:
    """The state of one method's target. `last_success` in seconds since 1970, 0 for never; `failures` are consecutive.

    `memories` counts them by state: delivered, waiting, refused.
    """

    method: str
    last_success: float = 0.0
    pending_databases: int = 0
    failures: int = 0
    memories: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMetrics:
    """Values from the ledger and the files. `bus` and `watcher` are from a fixed set of names, "" if unknown.

    `ledger_bytes` is None if unknown.
    """

    methods: tuple[MethodMetrics, ...] = ()
    results_waiting: int = 0
    bus: str = ""
    watcher: str = ""
    ledger_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """The state at one moment. `stuck` counts the stuck components; `ledger` is None if the ledger is unreadable."""

    ready: bool
    stuck: int
    ledger: LedgerMetrics | None


class Meter(Protocol):
    """Counts events for monitoring. Cheap, callable from any thread; never raises."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        """Count a result. `raw_bytes` is the uncompressed size of the files that were sent."""
        ...

    def retried(self, method: str) -> None:
        """Count an attempt that failed and is retried."""
        ...

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        """Count a database that was copied, hashed and verified, and its duration and uncompressed size."""
        ...


class NoMeter:
    """A Meter that counts nothing."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        pass

    def retried(self, method: str) -> None:
        pass

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        pass
