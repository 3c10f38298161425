"""Asks the Akosha server once a day whether it still has what it was given, where there is nothing to send to it.

With something to send, the sync itself asks. A server that cannot be reached is asked again with the next pass.
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
"""Time after the start until the first look: what has waited is synced before."""

LONGEST_SECONDS = 900.0
"""Longest sleep: while the machine sleeps, the loop's clock is stopped."""

_log = structlog.get_logger()


@dataclass(slots=True)
class ProbeLoop:
    """`still_has_it` asks the server, and makes the ledger owe everything where it returns False.

    `sync_lock` is held while a sync runs. Every `rescan_seconds` the loop tries again what it could not ask.
    """

    probe: DeliveryProbe
    still_has_it: Callable[[], Awaitable[bool]]
    publisher: Publisher
    clock: Clock
    sync_lock: asyncio.Lock
    rescan_seconds: float
    signal: Signal
    """Set after each sync."""

    _unasked: str = field(default="", init=False)

    async def run(self) -> None:
        """Ask when it is time, until cancelled. Raises StateError."""
        await self.clock.sleep(FIRST_SECONDS)
        while True:
            await self.check()
            await self.signal.wait(min(self.rescan_seconds, LONGEST_SECONDS))

    async def check(self) -> None:
        """Ask, if it is time. Raises StateError."""
        if await self._is_time():
            await self._ask()

    async def _is_time(self) -> bool:
        """Say whether Akosha is where memories go now, has them all as far as is known, and was not asked for a day."""
        if self.sync_lock.locked() or not self.publisher.policy.enabled:
            return False
        records = await self.publisher.records()
        if HTTP not in active_methods(self.publisher.policy.route, records) or records[HTTP].failures:
            return False
        if not await self.probe.is_due():  # first: after every sync, this is all that is read
            return False
        survey = await self.publisher.survey()
        return bool(survey) and not pending(records[HTTP], survey)

    async def _ask(self) -> None:
        async with self.sync_lock:
            try:
                has_it = await self.still_has_it()
            except SinkError as error:
                (_log.debug if error.message == self._unasked else _log.info)(
                    "akosha_not_checked", error=error.message, hint=error.hint
                )
                self._unasked = error.message
                return
        self._unasked = ""
        if not has_it:
            await self.publisher.trigger(RETRY)
