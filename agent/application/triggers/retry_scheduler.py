"""Automatic retries: at their scheduled time, on periodic rescans, and when a target can be reached again."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from agent.application.signal import Signal
from agent.application.triggers.file_changes import FileChanges
from agent.application.triggers.publisher import Publisher
from agent.domain.delivery_state import active_methods, due, next_try
from agent.domain.routing import FILE_CHANGE, LAST_TARGET_BACKOFF, RETRY
from agent.ports import Clock, Ledger, SyncMethod

SLACK_SECONDS = 1.0
"""Delay after the first due time, so that targets that failed one after the other are retried together."""

_log = structlog.get_logger()


@dataclass(slots=True)
class RetryScheduler:
    """The loops of retries and rescans. `sync_finished` is set after each attempt, `sync_lock` held during a sync.

    `rescan_seconds`: interval of the rescans, each preceded by `before_rescan`.
    """

    publisher: Publisher
    ledger: Ledger
    clock: Clock
    methods: Mapping[str, SyncMethod]
    changes: FileChanges
    sync_finished: Signal
    sync_lock: asyncio.Lock
    rescan_seconds: float
    route: tuple[str, ...]
    before_rescan: Callable[[], Awaitable[None]]
    unreachable: Collection[str]
    """Methods whose target could not be reached when it was last needed."""

    _reachable: dict[str, bool] = field(default_factory=dict, init=False)

    async def retry_loop(self) -> None:
        """Retry failed deliveries when they are due. The due times are in the ledger, so they survive restarts."""
        while True:
            records, survey = await self.publisher.records(), await self.publisher.survey()
            failing = active_methods(self.route, records)
            times = [at for method in failing if (at := next_try(records[method], survey)) is not None]
            if not times:
                await self.sync_finished.wait(None)
                continue
            wait = min((min(times) - self.clock.now()).total_seconds(), LAST_TARGET_BACKOFF.total_seconds())
            if await self.sync_finished.wait(wait + SLACK_SECONDS):
                continue
            if not self.sync_lock.locked():
                await self.publisher.trigger(RETRY)
            await self.sync_finished.wait(self.rescan_seconds)

    async def rescan_loop(self) -> None:
        """Look periodically for changes that the watcher missed, and for targets that can be reached again."""
        while True:
            await self.clock.sleep(self.rescan_seconds)
            await self.changes.note_mode()
            await self.before_rescan()
            if self.sync_lock.locked():
                continue
            if self.changes.is_idle and await self._is_due():
                self.changes.record_change()
            await self.retry_recovered_targets()

    async def rescan_now(self) -> bool:
        """Rescan after sleep, when the watch may have missed changes. Return whether a sync was requested."""
        await self.changes.note_mode()
        await self.before_rescan()
        if not await self._is_due():
            return False
        if self.sync_lock.locked() or not self.changes.enabled:
            self.changes.record_change()
            return False
        return await self.publisher.trigger(FILE_CHANGE) is not None

    async def _is_due(self) -> bool:
        """Return whether the first target lacks something that is due."""
        survey, records = await self.publisher.survey(), await self.publisher.records()
        primary = next((records[name] for name in self.route if name in records), None)
        return primary is not None and bool(due(primary, survey, self.clock.now(), urgent=False))

    async def retry_recovered_targets(self, recheck: set[str] | None = None) -> bool:
        """Retry at once the failing targets that can be reached again. Return whether there was one.

        `recheck`: methods to retry if they can be reached now, even if they could be reached before; they are removed
        from the set then. Does nothing while a sync runs.
        """
        if self.sync_lock.locked():
            return False
        recheck, recovered = set() if recheck is None else recheck, False
        records = await self.publisher.records()
        failing = active_methods(self.route, records)
        for name, record in records.items():
            if not record.failures or name not in failing:
                self._reachable.pop(name, None)
                continue
            before = self._reachable.get(name, False if name in self.unreachable else None)
            now = self._reachable[name] = await self.methods[name].is_available()
            if now and (before is False or name in recheck):
                recheck.discard(name)
                _log.info("target_recovered", method=name, system_id=record.target.system_id)
                await self.ledger.reset(record.target)
                await self.publisher.trigger(RETRY)
                self.sync_finished.set()
                recovered = True
        return recovered
