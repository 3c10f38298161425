"""The in-process buses, used if NATS is not configured or not reachable."""

import asyncio
from collections.abc import Callable

from agent.domain.errors import BusError, StateError
from agent.domain.events import Event
from agent.domain.naming import subject_matches
from agent.ports import BusState, Clock, Handler, StoredEvent
from agent.ports.dispatch import HandlerQueue, run_handler


class _MemoryState:
    """A bus that is always ready."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._closed = clock, False
        self.state = BusState("memory", ready=True, detail="in this process", since=clock.now())

    def on_change(self, listener: Callable[[], None]) -> None:
        """Ignore the listener: the state never changes."""

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")


class MemoryBus(_MemoryState):
    """`agent.ports.VolatileBus` in this process."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._subscriptions: dict[HandlerQueue[Event], str] = {}

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        subject = event.subject
        for queue, pattern in self._subscriptions.items():
            if subject_matches(pattern, subject):
                queue.put(event)

    async def subscribe(self, pattern: str, handler: Handler) -> HandlerQueue[Event]:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        queue = HandlerQueue[Event](
            pattern,
            lambda event: run_handler(handler, event, pattern),
            released=lambda: self._subscriptions.pop(queue, None),
        )
        self._subscriptions[queue] = pattern
        return queue

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(queue.stop() for queue in [*self._subscriptions]))


class MemoryDurableBus(_MemoryState):
    """`agent.ports.DurableBus` without a server: nothing consumes its events. `status` and `events` read the ledger."""

    stream = None
    consumers = None

    def check_connection(self) -> None:
        """Do nothing: there is no connection."""

    async def wait_until_ready(self) -> None:
        """Return at once: this bus is always ready."""

    async def publish(self, _event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()

    async def newest(self, _subject: str) -> StoredEvent | None:
        """Raise BusError: there is no stream."""
        raise BusError("events stay in this process: there is no stream")

    async def remove_consumer(self, _durable: str) -> None:
        """Raise BusError: there is no stream."""
        raise BusError("events stay in this process: there are no consumers")

    async def aclose(self) -> None:
        self._closed = True
