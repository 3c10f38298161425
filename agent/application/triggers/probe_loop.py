"""Checks once a day whether the Akosha server still has its memories, if there is nothing to send to it.

If there is something to send, the sync itself checks. If the server cannot be reached, the next pass tries again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from agent.application.signal import Signal
from agent.application.sync.delivery_probe import DeliveryProbe
from agent.application.triggers.publisher import Publisher
from agent.domain.delivery_state import active_methods, pending
from agent.domain.errors import SinkError
from agent.domain.routing import HTTP, RETRY
from agent.ports import Clock

FIRST_SECONDS = 60.0
"""Time from the start to the first check, so that pending changes are synced first."""

LONGEST_SECONDS = 900.0
"""Longest wait between two passes: the event loop's clock stops while the machine sleeps."""

_log = structlog.get_logger()


@dataclass(slots=True)
class ProbeLoop:
    """Runs the daily check. `still_has_memories` checks the server; if it returns False, the ledger owes everything.

    `sync_lock` is held while a sync runs. `rescan_seconds`: interval of the passes, at most LONGEST_SECONDS.
    """

    probe: DeliveryProbe
    still_has_memories: Callable[[], Awaitable[bool]]
    publisher: Publisher
    clock: Clock
    sync_lock: asyncio.Lock
    rescan_seconds: float
    signal: Signal
    """Set after each sync."""

    _last_error: str = field(default="", init=False)

    async def run(self) -> None:
        """Check the server daily, until cancelled. Raises StateError."""
        await self.clock.sleep(FIRST_SECONDS)
        while True:
            await self.check()
            await self.signal.wait(min(self.rescan_seconds, LONGEST_SECONDS))

    async def check(self) -> None:
        """Check the server if it is due. Raises StateError."""
        if await self._is_due():
            await self._check_server()

    async def _is_due(self) -> bool:
        """Return whether http is in use, its target lacks nothing as far as is known, and the daily check is due."""
        if self.sync_lock.locked() or not self.publisher.policy.enabled:
            return False
        records = await self.publisher.records()
        if HTTP not in active_methods(self.publisher.policy.route, records) or records[HTTP].failures:
            return False
        if not await self.probe.is_due():  # first: usually the only read after a sync
            return False
        survey = await self.publisher.survey()
        return bool(survey) and not pending(records[HTTP], survey)

    async def _check_server(self) -> None:
        async with self.sync_lock:
            try:
                has_memories = await self.still_has_memories()
            except SinkError as error:
                (_log.debug if error.message == self._last_error else _log.info)(
                    "akosha_not_checked", error=error.message, hint=error.hint
                )
                self._last_error = error.message
                return
        self._last_error = ""
        if not has_memories:
            await self.publisher.trigger(RETRY)
