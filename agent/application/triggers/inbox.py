"""Handles the events of other processes once each: sync requests, session ends, archive events."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from agent.application.triggers.publisher import Publisher
from agent.application.triggers.session_ends import SessionEnds
from agent.domain.errors import BusError, WireError
from agent.domain.events import (
    SessionEnded,
    SyncAsked,
    SyncRequested,
    UploadsPruned,
    UploadVerified,
    request_event_id,
)
from agent.ports import Ledger, VolatileBus

ArchiveEvent = UploadVerified | UploadsPruned
"""Events of the commands that verify or prune the archive."""

REMEMBERED = 1000
"""Number of asks kept in memory. The ledger has all outcomes."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Received:
    """The result of a SyncAsked: its request, None if it was refused; `new`: it was received for the first time."""

    request: SyncRequested | None
    new: bool


class Inbox:
    """Publishes one request for each SyncAsked; records each session end and each archive event once.

    `is_queued` returns whether a subscriber has the request of an ask. `record_archive_event` adds an archive event to
    the ledger; `outbox_changed` is called after an event was added to the outbox.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        bus: VolatileBus,
        ledger: Ledger,
        system_id: str,
        session_ends: SessionEnds,
        is_queued: Callable[[str], bool],
        record_archive_event: Callable[[ArchiveEvent], Awaitable[None]],
        outbox_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._publisher, self._bus, self._ledger, self._system_id = publisher, bus, ledger, system_id
        self._session_ends, self._is_queued = session_ends, is_queued
        self._record_archive_event, self._outbox_changed = record_archive_event, outbox_changed
        self._asks: OrderedDict[str, tuple[SyncAsked, SyncRequested]] = OrderedDict()
        self._in_progress: dict[str, asyncio.Event] = {}

    def check(self, event: SessionEnded | SyncAsked | ArchiveEvent) -> None:
        """Raise WireError if the event is for another system."""
        if event.system_id != self._system_id:
            hint = f"the running agent belongs to {self._system_id}: stop it, or use its settings"
            raise WireError(f"the event is for the system {event.system_id}", hint=hint)

    def readdressed(self, event: SessionEnded) -> SessionEnded:
        """Return a session's end with this system's ID, unchanged if it already has it. The event's own ID stays."""
        return event if event.system_id == self._system_id else replace(event, system_id=self._system_id)

    async def submit(self, ask: SyncAsked) -> Received:
        """Publish the request for a SyncAsked of this system, once for each ID. Raises BusError, StateError.

        An event that an earlier process of the agent took, and that has no outcome, is requested again.
        """
        async with self._exclusive(ask.id):
            if await self._ledger.outcome(ask.id) is not None:
                self._asks.pop(ask.id, None)
                return Received(await self._request_of(ask), new=False)
            if ask.id in self._asks:
                return Received(self._asks[ask.id][1], new=False)
            known = await self._request_of(ask)
            request = await self._publisher.submit(ask)
            if request is not None:
                self._asks[ask.id] = (ask, request)
                while len(self._asks) > REMEMBERED:
                    self._asks.popitem(last=False)
            return Received(request, new=known is None)

    async def accept_session_end(self, event: SessionEnded) -> bool:
        """Record a session's end of this system, so that a result answers it; then publish it for other programs.

        Return False if it was recorded before. Raises WireError if a result cannot name its ID, StateError.
        """
        if not await self._session_ends.accept(event):
            return False
        state = self._bus.state
        try:
            if not state.ready:  # publishing may wait for a bus for hours
                raise BusError(state.detail, transient=True)
            await self._bus.publish(event)
        except (BusError, WireError) as error:
            _log.info("session_end_not_published", id=event.id, error=str(error))
        return True

    async def announce(self, event: ArchiveEvent) -> None:
        """Record and publish an archive event of another process; ignore a duplicate. Raises StateError."""
        await self._record_archive_event(event)
        self._outbox_changed()

    async def open_asks(self) -> Sequence[SyncAsked]:
        """Return the SyncAsked events that this process took and that have no outcome yet, oldest first."""
        waiting = [ask for ask, _ in self._asks.values()]
        return [ask for ask in waiting if await self._ledger.outcome(ask.id) is None]

    async def republish(self) -> None:
        """Publish the requests again that have no outcome and that no subscriber has: the bus may have lost them."""
        for ask in await self.open_asks():
            if self._is_queued(ask.id):
                continue
            async with self._exclusive(ask.id):
                request = await self._publisher.submit(ask)
                if request is None:
                    self._asks.pop(ask.id, None)
                else:
                    self._asks[ask.id] = (ask, request)

    async def _request_of(self, ask: SyncAsked) -> SyncRequested | None:
        """Return the request of a SyncAsked from the history; of several, the one before it was forwarded."""
        events = [await self._ledger.find_event(request_event_id(ask.id, name)) for name in self._publisher.methods]
        requests = [event for event in events if isinstance(event, SyncRequested)]
        return min(requests, key=lambda request: len(request.errors), default=None)

    @asynccontextmanager
    async def _exclusive(self, ask_id: str) -> AsyncIterator[None]:
        """Serialise the handling of events with the same ID."""
        while (in_progress := self._in_progress.get(ask_id)) is not None:
            await in_progress.wait()
        self._in_progress[ask_id] = done = asyncio.Event()
        try:
            yield
        finally:
            del self._in_progress[ask_id]
            done.set()
