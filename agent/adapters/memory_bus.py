"""The in-process buses, used if NATS is not configured or not reachable.

`MemoryBus` hands events to current subscriptions. `MemoryDurableBus` keeps a mailbox for each durable name: an event
leaves it when its handler has returned. Without consumers it keeps nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from agent.domain.errors import StateError
from agent.domain.events import Event
from agent.domain.naming import subject_matches
from agent.ports import BusState, Clock, Handler, StoredEvent
from agent.ports.dispatch import EventQueue, end_task, redelivery_delay, run_handler

_log = structlog.get_logger()


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
        self._subscriptions: list[tuple[str, EventQueue]] = []

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        subject = event.subject
        for pattern, queue in self._subscriptions:
            if subject_matches(pattern, subject):
                queue.put(event)

    async def subscribe(self, pattern: str, handler: Handler) -> EventQueue:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        queue = EventQueue(pattern, handler, released=self._release)
        self._subscriptions.append((pattern, queue))
        return queue

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(queue.stop() for _, queue in self._subscriptions))

    def _release(self, queue: EventQueue) -> None:
        self._subscriptions = [each for each in self._subscriptions if each[1] is not queue]


class _Mailbox:
    """The unacknowledged events of one durable name, in order."""

    def __init__(self, name: str, pattern: str, limit: int) -> None:
        self.name, self.pattern, self._limit = name, pattern, limit
        self.consumer: _Consumer | None = None
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        """Append an event. A full mailbox discards its oldest event except the first, which may be in delivery."""
        if len(self._events) >= self._limit:
            discarded = self._events[1]
            del self._events[1]
            _log.warning("event_discarded", subscription=self.name, subject=discarded.subject, limit=self._limit)
        self._events.append(event)
        self._arrived.set()

    async def oldest(self) -> Event:
        """Wait for an event and return the oldest."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events[0]

    def drop_oldest(self) -> None:
        self._events.popleft()


class _Consumer:
    """Hands a mailbox's events to a handler until it is stopped: `agent.ports.Subscription`."""

    def __init__(self, mailbox: _Mailbox, handler: Handler, clock: Clock) -> None:
        self._mailbox, self._handler, self._clock = mailbox, handler, clock
        self._worker = asyncio.create_task(self._run(), name=f"bus-{mailbox.name}")

    async def stop(self) -> None:
        if not self._worker.done():
            await end_task(self._worker)
        if self._mailbox.consumer is self:
            self._mailbox.consumer = None

    async def _run(self) -> None:
        failures = 0
        while True:
            event = await self._mailbox.oldest()
            if await run_handler(self._handler, event, self._mailbox.name):
                self._mailbox.drop_oldest()
                failures = 0
            else:
                failures += 1
                await self._clock.sleep(redelivery_delay(failures))


class MemoryDurableBus(_MemoryState):
    """`agent.ports.DurableBus` in this process. Its events end with the process.

    A durable name starts with its first consumer: earlier events are not kept. A mailbox keeps at most `limit` events.
    """

    def __init__(self, clock: Clock, *, limit: int = 10_000) -> None:
        super().__init__(clock)
        self._limit = max(limit, 2)
        self._mailboxes: dict[str, _Mailbox] = {}
        self.stream = None

    def check_connection(self) -> None:
        """Do nothing: there is no connection."""

    async def wait_until_ready(self) -> None:
        """Return at once: this bus is always ready."""

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        subject = event.subject
        for mailbox in self._mailboxes.values():
            if subject_matches(mailbox.pattern, subject):
                mailbox.put(event)

    async def newest(self, _subject: str) -> StoredEvent | None:
        """Return None: there is no stream."""
        return None

    async def consume(self, pattern: str, handler: Handler, *, durable: str) -> _Consumer:
        """Implement the port. Raises StateError if the durable name is in use or has another pattern."""
        self._check_open()
        mailbox = self._mailboxes.setdefault(durable, _Mailbox(durable, pattern, self._limit))
        if mailbox.consumer is not None:
            raise StateError(f"the durable name {durable!r} is in use", hint="stop the other consumer first")
        if mailbox.pattern != pattern:
            raise StateError(f"the durable name {durable!r} is for {mailbox.pattern!r}, not for {pattern!r}")
        mailbox.consumer = consumer = _Consumer(mailbox, handler, self._clock)
        return consumer

    async def remove_consumer(self, durable: str) -> None:
        self._mailboxes.pop(durable, None)

    async def aclose(self) -> None:
        self._closed = True
        consumers = [mailbox.consumer for mailbox in self._mailboxes.values() if mailbox.consumer]
        await asyncio.gather(*(consumer.stop() for consumer in consumers))
        self._mailboxes.clear()
