"""The ledger's history as it grows: streamed by a running agent, or polled if none is running."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from agent.bootstrap.home import Home
from agent.domain.errors import AgentUnavailable
from agent.domain.events import SyncProgress
from agent.entrypoints.control_client.endpoint import Endpoint
from agent.ports import HistoryEntry, Ledger

POLL_SECONDS = 0.25

_log = structlog.get_logger()


async def read_history(ledger: Ledger, *, after: int) -> AsyncGenerator[HistoryEntry, None]:
    """Yield the existing entries after a position, in order. Raises StateError."""
    position = after
    while batch := await ledger.history(after=position):
        for entry in batch:
            position = entry.position
            yield entry


async def follow_history(home: Home, ledger: Ledger, *, after: int) -> AsyncGenerator[HistoryEntry, None]:
    """Yield the existing and new entries after a position, each once and in order. Never ends. Raises StateError."""
    endpoint, position = Endpoint(home), after
    while True:
        async with aclosing(read_history(ledger, after=position)) as entries:
            async for entry in entries:
                position = entry.position
                yield entry
        client = await endpoint.client()
        if client is None:
            await home.clock.sleep(POLL_SECONDS)
            continue
        try:
            async with client, client.events(after=position) as events:
                endpoint.reset_pause()
                async for item in events:
                    if not isinstance(item, SyncProgress) and item.position > position:
                        position = item.position
                        yield item
        except AgentUnavailable as error:
            _log.debug("agent_unavailable", error=str(error))
        endpoint.back_off()
