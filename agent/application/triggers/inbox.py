"""What other processes bring: asks, ended sessions, news of the archive. By whatever door, each counts once."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from agent.application.triggers.publisher import Publisher
from agent.domain.errors import WireError
from agent.domain.events import (
    SessionEnded,
    SyncAsked,
    SyncRequested,
    UploadsPruned,
    UploadVerified,
    request_event_id,
)
from agent.ports import EventBus, Ledger

K = TypeVar("K")
T = TypeVar("T")

ArchiveNews = UploadVerified | UploadsPruned
"""What commands find out about the archive, or do to it."""

REMEMBERED = 1000
"""How many of the newest ids are known here. The ledger knows all outcomes, and who hears session ends, all ends."""


@dataclass(frozen=True, slots=True)
class Received:
    """What became of an ask: its request, or None where it was refused; and whether it came for the first time."""

    request: SyncRequested | None
    new: bool


class Inbox:
    """One request for each ask, one SessionEnded on the bus for each session's end, each archive event announced once.

    `outbox_changed` is called where there is something in the outbox.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        bus: EventBus,
        ledger: Ledger,
        system_id: str,
        outbox_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._publisher, self._bus, self._ledger, self._system_id = publisher, bus, ledger, system_id
        self._outbox_changed = outbox_changed
        self._asks: OrderedDict[str, tuple[SyncAsked, SyncRequested]] = OrderedDict()
        self._ends: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._in_progress: dict[tuple[str, str], asyncio.Event] = {}

    def check(self, event: SessionEnded | SyncAsked | ArchiveNews) -> None:
        """Raise WireError where it is for another system."""
        if event.system_id != self._system_id:
            hint = f"the agent that runs here is {self._system_id}'s: stop it, or use its settings"
            raise WireError(f"it is for the system {event.system_id}", hint=hint)

    def readdressed(self, event: SessionEnded) -> SessionEnded:
        """Return a session's end as one of this system: itself, where it is that already. Its id stays."""
        return event if event.system_id == self._system_id else replace(event, system_id=self._system_id)

    async def submit(self, ask: SyncAsked) -> Received:
        """Take an ask of this system; a second one of its id changes nothing. Raises BusError, StateError.

        One without an outcome that an earlier life of the agent took is asked for again: requests are disposable.
        """
        async with self._exclusive("", ask.id):
            if await self._ledger.outcome(ask.id) is not None:
                self._asks.pop(ask.id, None)
                return Received(await self._request_of(ask), new=False)
            if ask.id in self._asks:
                return Received(self._asks[ask.id][1], new=False)
            known = await self._request_of(ask)
            request = await self._publisher.submit(ask)
            if request is not None:
                self._asks[ask.id] = (ask, request)
                _trim(self._asks)
            return Received(request, new=known is None)

    async def accept_session_end(self, event: SessionEnded) -> bool:
        """Put a session's end of this system on the bus; False where this agent has done so already.

        Raises WireError for what cannot travel, BusError.
        """
        key = (event.sender, event.id)
        async with self._exclusive(*key):
            if key in self._ends:
                return False
            await self._bus.publish(event)
            self._ends[key] = None
            _trim(self._ends)
            return True

    async def announce(self, event: ArchiveNews) -> None:
        """Tell what another process of this system has found out or done; one that is known changes nothing.

        Raises StateError.
        """
        await self._ledger.announce(event)
        self._outbox_changed()

    async def open_asks(self) -> Sequence[SyncAsked]:
        """Return the asks of this life that have no outcome yet, oldest first."""
        waiting = [ask for ask, _ in self._asks.values()]
        return [ask for ask in waiting if await self._ledger.outcome(ask.id) is None]

    async def republish(self) -> None:
        """Publish once more what has no outcome: the request may have stayed behind on another bus."""
        for ask in await self.open_asks():
            async with self._exclusive("", ask.id):
                request = await self._publisher.submit(ask)
                if request is None:
                    self._asks.pop(ask.id, None)
                else:
                    self._asks[ask.id] = (ask, request)

    async def _request_of(self, ask: SyncAsked) -> SyncRequested | None:
        """Return the request that an ask led to, as the history has it: the first of those that were forwarded."""
        events = [await self._ledger.find_event(request_event_id(ask.id, name)) for name in self._publisher.methods]
        requests = [event for event in events if isinstance(event, SyncRequested)]
        return min(requests, key=lambda request: len(request.errors), default=None)

    @asynccontextmanager
    async def _exclusive(self, sender: str, event_id: str) -> AsyncIterator[None]:
        """Let those of one id take turns; others do not wait. An id is its sender's own."""
        key = (sender, event_id)
        while (in_progress := self._in_progress.get(key)) is not None:
            await in_progress.wait()
        self._in_progress[key] = over = asyncio.Event()
        try:
            yield
        finally:
            del self._in_progress[key]
            over.set()


def _trim(known: OrderedDict[K, T]) -> None:
    while len(known) > REMEMBERED:
        known.popitem(last=False)
