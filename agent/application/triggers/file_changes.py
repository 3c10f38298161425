"""Turns file changes into sync requests: the watch reports, the debounce waits for quiet, the publisher requests."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from agent.application.signal import Signal
from agent.application.triggers.publisher import Publisher
from agent.domain.debounce import Debounce, DebounceRules, Wait
from agent.domain.routing import FILE_CHANGE
from agent.ports import Clock, Ledger, Watch

WATCHER = "watcher"
"""Ledger note: how the files are watched."""

_log = structlog.get_logger()


@dataclass(slots=True)
class FileChanges:
    """Turns bursts of changes into requests, unless `enabled` is false. `started` is set once the watch has started.

    While a sync is running (`busy`) none is requested: otherwise requests would queue behind a sync that takes longer
    than the interval. Set `signal` when a sync may have ended.
    """

    watch: Watch
    publisher: Publisher
    ledger: Ledger
    clock: Clock
    rules: DebounceRules
    enabled: bool
    busy: Callable[[], bool]
    started: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    signal: Signal = field(init=False)

    _debounce: Debounce = field(default_factory=Debounce, init=False)
    _mode: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.signal = Signal(self.clock, "debounce")

    @property
    def is_idle(self) -> bool:
        """Whether no change is waiting for a request."""
        return self._debounce.first is None

    def next_request(self) -> tuple[float, Wait] | None:
        """Return in how many seconds a sync is requested, and the rule that decides it; None if no change waits.

        Negative if a running sync delays it.
        """
        waits = self._debounce.waits_for(self.rules) if self.enabled else None
        return None if waits is None else (waits[0] - self.clock.monotonic(), waits[1])

    def record_change(self, ago: float = 0.0) -> None:
        """Record a change that happened `ago` seconds ago."""
        self._debounce = self._debounce.changed(self.clock.monotonic() - ago)
        self.signal.set()

    async def watch_loop(self) -> None:
        """Record what the watch reports, until cancelled."""
        async with aclosing(self.watch.changes()) as changes:
            async for names in changes:
                self.started.set()
                await self.note_mode()
                if names:
                    _log.debug("files_changed", names=sorted(names))
                    self.record_change(self.watch.lag)

    async def note_mode(self) -> None:
        """Record in the ledger, for `status`, how the files are watched now."""
        if self.watch.mode != self._mode:
            self._mode = self.watch.mode
            await self.ledger.note(WATCHER, self._mode)

    async def debounce_loop(self) -> None:
        """Request a sync when a burst is due, until cancelled."""
        while True:
            due = self._debounce.due(self.rules) if self.enabled else None
            now = self.clock.monotonic()
            if due is None or due > now:
                await self.signal.wait(None if due is None else due - now)
                continue
            if self.busy():
                # With a timeout: the lock may be held by an operation that sets no signal.
                await self.signal.wait(self.rules.deadline)
                continue
            burst, self._debounce = self._debounce, self._debounce.taken()
            try:
                request = await self.publisher.trigger(FILE_CHANGE)
            except BaseException:
                self._debounce = self._debounce.restored(burst)
                raise
            if request is not None:
                self._debounce = self._debounce.fired(now)
