"""Counters, and the values measured when metrics are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.domain.events import SyncResult


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMetrics:
    """The state of one method's target. `last_success` in seconds since 1970, 0 for never; `failures` are consecutive.

    `memories`: how many were delivered, wait, or were refused.
    """

    method: str
    last_success: float = 0.0
    pending_databases: int = 0
    failures: int = 0
    memories: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMetrics:
    """What the ledger and the files tell. `bus` and `watcher` are names of kinds, few and fixed; "" where unknown.

    `ledger_bytes` is None where nobody can say.
    """

    methods: tuple[MethodMetrics, ...] = ()
    results_waiting: int = 0
    bus: str = ""
    watcher: str = ""
    ledger_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """The state at one moment. `stuck` counts the parts that are; `ledger` is None where it is unreadable."""

    ready: bool
    stuck: int
    ledger: LedgerMetrics | None


class Meter(Protocol):
    """Counts what happens, for monitoring. Cheap, callable from any thread; never raises."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        """A request has come to its result. `raw_bytes`: of the files that were sent, before compression."""
        ...

    def retried(self, method: str) -> None:
        """An attempt of a method failed, and another follows."""
        ...

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        """A database was copied, hashed and verified in so many seconds."""
        ...


class NoMeter:
    """A Meter that counts nothing."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        pass

    def retried(self, method: str) -> None:
        pass

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        pass
