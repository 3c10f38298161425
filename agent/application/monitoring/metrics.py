"""From the status, made for people, to figures, made for a meter."""

from collections.abc import Mapping

from agent.application.monitoring.status import Status, TargetStatus
from agent.application.sync.bus_recovery import BUS
from agent.application.triggers.file_changes import WATCHER
from agent.ports.metrics import LedgerMetrics, MethodMetrics

WAITING = "waiting"
DELIVERED, REFUSED = "delivered", "refused"


def ledger_metrics(status: Status, *, ledger_bytes: int | None) -> LedgerMetrics:
    """Return the figures of a status. `bus` is nats, memory or waiting; `watcher` native, polling or waiting."""
    return LedgerMetrics(
        methods=tuple(_method(target) for target in status.targets),
        results_waiting=status.results_waiting,
        bus=_first_word(status.notes, BUS),
        watcher=_first_word(status.notes, WATCHER),
        ledger_bytes=ledger_bytes,
    )


def _method(target: TargetStatus) -> MethodMetrics:
    memories = target.memories
    return MethodMetrics(
        method=target.method,
        last_success=target.last_success.timestamp() if target.last_success else 0.0,
        pending_databases=len(target.pending),
        failures=target.failures,
        memories={
            DELIVERED: memories.delivered,
            WAITING: sum(memories.waiting.values()),
            REFUSED: sum(memories.refused.values()),
        },
    )


def _first_word(notes: Mapping[str, str], key: str) -> str:
    """Return the kind that a note begins with: `nats: tls://...`, `polling (nfs ...)`."""
    return notes.get(key, "").partition(" ")[0].rstrip(":")
