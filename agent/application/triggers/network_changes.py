"""Recovers after sleep or a network change, within seconds.

change -> the connection of the bus is checked
          idle connections are dropped; a running sync without progress restarts
          failing targets are retried now and a few times more, because a network comes up slowly
          after sleep, the databases are rescanned
"""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from agent.application.signal import Signal
from agent.application.sync.stall import StallMonitor
from agent.application.triggers.retry_scheduler import RetryScheduler
from agent.ports import Clock, DurableBus, NetworkChange, NetworkMonitor

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses between the checks of failing targets after a change."""

FIRST_PAUSE_SECONDS = 5.0
LAST_PAUSE_SECONDS = 60.0
"""Changes within the pause are handled together. If they continue, the pause doubles from the first to the last."""

_log = structlog.get_logger()


@dataclass(slots=True)
class NetworkChanges:
    """Handles network changes: notifies `bus` and `stall_monitor`; `retries` checks databases and targets."""

    network_monitor: NetworkMonitor
    clock: Clock
    bus: DurableBus
    stall_monitor: StallMonitor
    retries: RetryScheduler

    _signal: Signal = field(init=False)
    _changes: set[NetworkChange] = field(default_factory=set, init=False)
    _last: float | None = field(default=None, init=False)
    _pause: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._signal = Signal(self.clock, "network")

    async def run(self) -> None:
        """Handle network changes until cancelled. Raises StateError."""
        listening = asyncio.create_task(self._listen(), name="network-monitor")
        try:
            await self._handle(listening)
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    async def _listen(self) -> None:
        try:
            async with aclosing(self.network_monitor.changes()) as changes:
                async for change in changes:
                    self._changes.add(change)
                    self._signal.set()
        finally:
            self._signal.set()

    async def _handle(self, listening: "asyncio.Task[None]") -> None:
        recheck: set[str] = set()
        pauses: Iterator[float] = iter(())
        while True:
            was_set = await self._signal.wait(next(pauses, None))
            if listening.done():
                return listening.result()
            if not was_set:
                await self.retries.retry_recovered_targets(recheck)
                continue
            await self._debounce()
            changes, self._changes = self._changes, set()
            if not changes:
                continue  # it arrived during the pause, and was handled with the previous one
            _log.info("network_changed", changes=", ".join(sorted(changes)))
            self.bus.check_connection()
            await self.stall_monitor.tighten()
            recheck, pauses = set(self.retries.methods), iter(PAUSES)
            requested = await self.retries.retry_recovered_targets(recheck)
            if not requested and NetworkChange.WOKE in changes:
                requested = await self.retries.rescan_now()
            if not requested:
                self.retries.sync_finished.set()  # wall clock time passed while the machine slept

    async def _debounce(self) -> None:
        """Wait for the end of the pause since the last change."""
        if not self._changes:
            return
        now = self.clock.monotonic()
        ago = None if self._last is None else now - self._last
        if ago is None or ago > LAST_PAUSE_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        else:
            await self.clock.sleep(self._pause - ago)
            self._pause = min(self._pause * 2, LAST_PAUSE_SECONDS)
        self._last = self.clock.monotonic()
