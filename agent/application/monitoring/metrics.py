"""The metrics that are derived from the status."""

from collections.abc import Mapping

from agent.application.monitoring.status import Status, TargetStatus
from agent.application.sync.bus_recovery import BUS
from agent.application.triggers.file_changes import WATCHER
from agent.ports.metrics import LedgerMetrics, MethodMetrics

WAITING = "waiting"
DELIVERED, REFUSED = "delivered", "refused"


def ledger_metrics(status: Status, *, ledger_bytes: int | None) -> LedgerMetrics:
    """Return the metrics of a status. `bus` is nats, memory or waiting; `watcher` is native, polling or waiting."""
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
    """Return the kind at the start of a note such as `nats: tls://...` or `polling (nfs ...)`."""
    return notes.get(key, "").partition(" ")[0].rstrip(":")
