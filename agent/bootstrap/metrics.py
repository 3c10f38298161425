"""Builds the agent's metrics and their Prometheus exposition."""

import asyncio
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent import __version__
from agent.adapters.prometheus_meter import CONTENT_TYPE, PrometheusMeter
from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.metrics import ledger_metrics
from agent.domain.errors import StateError
from agent.ports.metrics import LedgerMetrics, Meter, MetricsSnapshot


@dataclass(slots=True)
class Metering:
    """The metrics of a running agent. `ledger_bytes` (`Ledger.size`), if set, is called at each scrape."""

    counts: PrometheusMeter
    ledger_bytes: Callable[[], Awaitable[int]] | None = None

    @property
    def meter(self) -> Meter:
        """The meter, which is safe to use in any thread."""
        return self.counts

    async def exposition(self, agent_service: AgentService) -> tuple[bytes, str]:
        """Return all metrics and their content type. An unreadable ledger is reported by a metric, not an error."""
        snapshot = MetricsSnapshot(
            ready=agent_service.ready, stuck=len(agent_service.problems()), ledger=await self._ledger(agent_service)
        )
        return await asyncio.to_thread(self.counts.exposition, snapshot), CONTENT_TYPE

    async def _ledger(self, agent_service: AgentService) -> LedgerMetrics | None:
        try:
            size = await self.ledger_bytes() if self.ledger_bytes else None
            return ledger_metrics(await agent_service.status_for_metrics(), ledger_bytes=size)
        except StateError:
            return None


def metering() -> Metering:
    """Return the metrics of a new agent, with all counters at 0."""
    return Metering(PrometheusMeter(version=__version__, python=platform.python_version()))
