"""Event stream: the ledger's history and the progress of running syncs, live."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import structlog

from agent.domain import naming
from agent.domain.errors import AkoshaError
from agent.domain.events import Event, SyncProgress, SyncResult
from agent.ports import HistoryEntry, Ledger, VolatileBus

BATCH = 100
"""Number of events that a reader reads from the ledger at once."""

PROGRESS_KEPT = 16
"""Number of newest progress events kept for a slow reader."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Batch:
    """A read of the ledger, after a position and a number of writes: so it has all entries of these writes."""

    wanted: tuple[int, int]
    read: asyncio.Task[Sequence[HistoryEntry]]


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """What is new for a reader: `changed` is set, and `progress` has the newest progress events."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    progress: deque[SyncProgress] = field(default_factory=lambda: deque(maxlen=PROGRESS_KEPT))


class EventStream:
    """Wakes its readers when the history grows. Each reader reads the ledger from its own position.

    They share one subscription to progress, from the first reader until the last one has left.
    """

    def __init__(self, *, ledger: Ledger, bus: VolatileBus, system_id: str) -> None:
        self._ledger, self._bus, self._system_id = ledger, bus, system_id
        self._readers: set[_Reader] = set()
        self._following: asyncio.Task[None] | None = None
        self._written = 0
        self._batch: _Batch | None = None
        ledger.on_history(self._notify)

    async def events(self, *, after: int | None) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        """Yield the history after a position (None: the newest), then new entries and progress. Does not end.

        A position beyond the newest entry belongs to an earlier ledger: the complete history follows. Progress events
        are those of syncs that have no result yet. A slow reader misses progress events, but no history entries.
        The history does not wait for the bus. Raises StateError.
        """
        reader = _Reader()
        self._readers.add(reader)
        if self._following is None:
            self._following = asyncio.create_task(self._follow_progress(), name="event-progress")
        try:
            position = await self._first_position(after)
            finished, read = "", -1
            while True:
                reader.changed.clear()  # before reading, so that entries written from now on are read in the next round
                entries: Sequence[HistoryEntry] = ()
                if read != self._written:  # else only progress was made
                    read = self._written
                    entries = await self._entries(position)
                for entry in entries:
                    position = entry.position
                    if isinstance(entry.event, SyncResult):
                        finished = entry.event.request_id
                    yield entry
                if len(entries) == BATCH:
                    read = -1
                    continue
                while reader.progress:
                    if (event := reader.progress.popleft()).request_id != finished:
                        yield event
                await reader.changed.wait()
        finally:
            self._readers.discard(reader)
            await self._stop_reading()

    async def _follow_progress(self) -> None:
        """Pass progress events to all readers, until cancelled."""

        async def keep(event: Event) -> None:
            if isinstance(event, SyncProgress):
                for reader in self._readers:
                    reader.progress.append(event)
                    reader.changed.set()

        try:
            subscription = await self._bus.subscribe(naming.progress_subject(self._system_id), keep)
        except AkoshaError as error:
            _log.warning("progress_unavailable", error=str(error))
            return
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await subscription.stop()

    async def _entries(self, after: int) -> Sequence[HistoryEntry]:
        """Return the next entries after a position. Readers at the same position share one read of the ledger."""
        wanted = after, self._written
        if self._batch is None or self._batch.wanted != wanted:
            self._batch = _Batch(wanted, asyncio.create_task(self._read(after), name="event-batch"))
        batch = self._batch
        try:
            return await asyncio.shield(batch.read)
        except Exception:
            if self._batch is batch:
                self._batch = None  # the next reader tries again
            raise

    async def _read(self, after: int) -> Sequence[HistoryEntry]:
        return await self._ledger.history(after=after, limit=BATCH)

    async def _stop_reading(self) -> None:
        """After the last reader, end what they share."""
        if self._readers:
            return
        shared = self._following, None if self._batch is None else self._batch.read
        self._following = self._batch = None
        tasks = [task for task in shared if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _first_position(self, after: int | None) -> int:
        last = await self._ledger.last_position()
        if after is None:
            return last
        return after if after <= last else 0

    def _notify(self) -> None:
        self._written += 1
        for reader in self._readers:
            reader.changed.set()
