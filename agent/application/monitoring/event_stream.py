"""What happens, told to everybody who listens: the ledger's history, read once for all of them, and progress."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from agent.domain import naming
from agent.domain.errors import AkoshaError
from agent.domain.events import SyncProgress, SyncResult
from agent.ports import EventBus, HistoryEntry, Ledger, Message, Subscription

BATCH = 100
"""How many events are read from the ledger at once, and how many of the newest are kept while somebody listens."""

PROGRESS_KEPT = 16

_log = structlog.get_logger()


class _Tail:
    """The newest events: all that have a position after `base`, up to `head`."""

    def __init__(self, position: int) -> None:
        self.base = self.head = position
        self._entries: deque[HistoryEntry] = deque()

    def add(self, entries: Sequence[HistoryEntry]) -> None:
        """Add what follows."""
        for entry in entries:
            self._entries.append(entry)
            self.head = entry.position
            if len(self._entries) > BATCH:
                self.base = self._entries.popleft().position

    def after(self, position: int) -> Sequence[HistoryEntry]:
        """Return those after a position that is not before `base`."""
        found: list[HistoryEntry] = []
        for entry in reversed(self._entries):
            if entry.position <= position:
                break
            found.append(entry)
        found.reverse()
        return found


class EventStream:
    """Readers pull. One that keeps up is served from the tail, which whoever comes first reads on for all; one that is
    behind it reads the ledger for itself, a batch at a time. Nothing runs while nothing happens or nobody listens.
    """

    def __init__(self, *, ledger: Ledger, bus: EventBus, system_id: str) -> None:
        self._ledger, self._bus, self._system_id = ledger, bus, system_id
        self._readers = 0
        self._door = asyncio.Lock()
        self._hearing: Subscription | None = None
        self._tail: _Tail | None = None
        self._reading = asyncio.Lock()
        self._written = 0  # how often the history has grown
        self._read = -1  # how often it had when the tail was read to its end
        self._progress: deque[tuple[int, SyncProgress]] = deque(maxlen=PROGRESS_KEPT)
        self._heard = 0
        self._signal = asyncio.Event()
        ledger.on_history(self._grown)

    @property
    def readers(self) -> int:
        """How many listen now."""
        return self._readers

    async def events(self, *, after: int | None) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        """Yield the history after a position, then what happens; None: from now on. Never ends. Raises StateError.

        A position that the ledger has not come to yet is an earlier ledger's: then all of this one is told. Progress is
        that of syncs without a result yet; a slow reader misses some of it, and none of the history.
        """
        async with self._listening():
            position = await self._begin(after)
            heard, over = self._heard, ""
            while True:
                signal = self._signal  # before looking: what comes while a reader is at work rings this one
                entries = await self._after(position)
                for entry in entries:
                    position = entry.position
                    if isinstance(entry.event, SyncResult):
                        over = entry.event.request_id
                    yield entry
                if entries:
                    continue
                for number, progress in list(self._progress):
                    if number > heard:
                        heard = number
                        if progress.request_id != over:
                            yield progress
                await signal.wait()

    def _grown(self) -> None:
        self._written += 1
        self._ring()

    def _ring(self) -> None:
        if self._readers:
            signal, self._signal = self._signal, asyncio.Event()
            signal.set()

    async def _begin(self, after: int | None) -> int:
        async with self._reading:
            if self._tail is None:
                written = self._written
                self._tail = _Tail(await self._ledger.last_position())
                self._read = written
            tail = self._tail
        if after is None:
            while self._read != self._written:
                await self._read_on(tail.head)
            return tail.head
        return after if after <= tail.head or after <= await self._ledger.last_position() else 0

    async def _after(self, position: int) -> Sequence[HistoryEntry]:
        """Return the next events after a position; none where there are none yet."""
        tail = self._tail
        assert tail is not None
        if position < tail.base:
            return await self._ledger.history(after=position, limit=BATCH)
        if position >= tail.head:
            await self._read_on(position)
        if position < tail.base:  # it has been read on by more than it keeps
            return await self._ledger.history(after=position, limit=BATCH)
        return tail.after(position)

    async def _read_on(self, position: int) -> None:
        """Read the tail on by a batch, once for all who have come to this position."""
        if self._read == self._written:
            return
        async with self._reading:
            tail, written = self._tail, self._written
            if tail is None or self._read == written or tail.head > position:
                return
            entries = await self._ledger.history(after=tail.head, limit=BATCH)
            tail.add(entries)
            if len(entries) < BATCH:
                self._read = written

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        self._readers += 1
        try:
            await self._hear()
            yield
        finally:
            self._readers -= 1
            await self._hear()

    async def _hear(self) -> None:
        """Hear progress while there are readers; let go of everything when the last one has left."""
        async with self._door:
            if self._readers and self._hearing is None:
                try:
                    subject = naming.progress_subject(self._system_id)
                    self._hearing = await self._bus.subscribe(subject, self._take_progress)
                except AkoshaError as error:
                    _log.warning("progress_unheard", error=str(error))
            elif not self._readers:
                self._tail = None
                self._progress.clear()
                if self._hearing is not None:
                    await self._hearing.stop()
                    self._hearing = None

    async def _take_progress(self, message: Message) -> None:
        if isinstance(message.event, SyncProgress):
            self._heard += 1
            self._progress.append((self._heard, message.event))
            self._ring()
        await message.ack()
