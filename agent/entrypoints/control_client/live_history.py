"""The ledger's history as it grows: told by the agent while one runs, looked for while none does."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from agent.bootstrap.home import Home
from agent.domain.events import SyncProgress
from agent.entrypoints.control_client.endpoint import Endpoint, NoAnswer
from agent.ports import HistoryEntry, Ledger

LOOK_SECONDS = 0.25

_log = structlog.get_logger()


async def written(ledger: Ledger, *, after: int) -> AsyncGenerator[HistoryEntry, None]:
    """Yield each entry after a position that the ledger has, in order. Raises StateError."""
    position = after
    while batch := await ledger.history(after=position):
        for entry in batch:
            position = entry.position
            yield entry


async def follow(home: Home, ledger: Ledger, *, after: int) -> AsyncGenerator[HistoryEntry, None]:
    """Yield each entry after a position, and those that follow, once and in order; never ends. Raises StateError."""
    door, position = Endpoint(home), after
    while True:
        async with aclosing(written(ledger, after=position)) as entries:
            async for entry in entries:
                position = entry.position
                yield entry
        client = await door.client()
        if client is None:
            await home.clock.sleep(LOOK_SECONDS)
            continue
        try:
            async with client, client.events(after=position) as events:
                door.opened()
                async for item in events:
                    if not isinstance(item, SyncProgress) and item.position > position:
                        position = item.position
                        yield item
        except NoAnswer as error:
            _log.debug("agent_unheard", error=str(error))
        door.failed()
