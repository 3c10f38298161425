"""Event stream: the ledger's history and the progress of running syncs, live."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import structlog

from agent.domain import naming
from agent.domain.errors import AkoshaError
from agent.domain.events import Event, SyncProgress, SyncResult
from agent.ports import HistoryEntry, Ledger, Subscription, VolatileBus

BATCH = 100
"""Number of events that a reader reads from the ledger at once."""

PROGRESS_KEPT = 16
"""Number of newest progress events kept for a slow reader."""

_log = structlog.get_logger()


class EventStream:
    """Wakes its readers when the history grows. Each reader reads the ledger from its own position."""

    def __init__(self, *, ledger: Ledger, bus: VolatileBus, system_id: str) -> None:
        self._ledger, self._bus, self._system_id = ledger, bus, system_id
        self._readers: set[asyncio.Event] = set()
        ledger.on_history(self._notify)

    async def events(self, *, after: int | None) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        """Yield the history after a position (None: the newest), then new entries and progress. Does not end.

        A position beyond the newest entry belongs to an earlier ledger: the complete history follows. Progress events
        are those of syncs that have no result yet. A slow reader misses progress events, but no history entries.
        Raises StateError.
        """
        changed = asyncio.Event()
        progress: deque[SyncProgress] = deque(maxlen=PROGRESS_KEPT)
        subscription: Subscription | None = None

        async def keep(event: Event) -> None:
            if isinstance(event, SyncProgress):
                progress.append(event)
                changed.set()

        self._readers.add(changed)
        try:
            try:
                subscription = await self._bus.subscribe(naming.progress_subject(self._system_id), keep)
            except AkoshaError as error:
                _log.warning("progress_unavailable", error=str(error))
            position = await self._first_position(after)
            finished = ""
            while True:
                changed.clear()  # before reading, so that entries written from now on are read in the next round
                entries = await self._ledger.history(after=position, limit=BATCH)
                for entry in entries:
                    position = entry.position
                    if isinstance(entry.event, SyncResult):
                        finished = entry.event.request_id
                    yield entry
                if len(entries) == BATCH:
                    continue
                while progress:
                    if (event := progress.popleft()).request_id != finished:
                        yield event
                await changed.wait()
        finally:
            self._readers.discard(changed)
            if subscription is not None:
                await subscription.stop()

    async def _first_position(self, after: int | None) -> int:
        last = await self._ledger.last_position()
        if after is None:
            return last
        return after if after <= last else 0

    def _notify(self) -> None:
        for changed in self._readers:
            changed.set()
