"""The in-process buses, used if NATS is not configured or not reachable."""

import asyncio
from collections import deque
from collections.abc import Callable

from agent.domain.errors import StateError
from agent.domain.events import Event
from agent.domain.naming import subject_matches
from agent.ports import BusState, Clock, Handler, StoredEvent
from agent.ports.dispatch import HandlerQueue, end_task, redelivery_delay, run_handler


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


class _Consumer:
    """A durable name of `MemoryDurableBus` and its unacknowledged events: `agent.ports.Subscription`."""

    def __init__(self, name: str, pattern: str, clock: Clock) -> None:
        self.name, self.pattern, self._clock = name, pattern, clock
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._worker is not None and not self._worker.done()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    def start(self, handler: Handler) -> None:
        self._worker = asyncio.create_task(self._run(handler), name=f"bus-{self.name}")

    async def stop(self) -> None:
        if self._worker is not None and self.is_running:
            await end_task(self._worker)

    async def _run(self, handler: Handler) -> None:
        failures = 0
        while True:
            if not self._events:
                self._arrived.clear()
                await self._arrived.wait()
            if await run_handler(handler, self._events[0], self.name):
                self._events.popleft()
                failures = 0
            else:
                failures += 1
                await self._clock.sleep(redelivery_delay(failures))


class MemoryDurableBus(_MemoryState):
    """`agent.ports.DurableBus` in this process. Its events end with the process.

    A durable name starts with its first consumer: earlier events are not kept. Without consumers it keeps nothing.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._consumers: dict[str, _Consumer] = {}
        self.stream = None

    def check_connection(self) -> None:
        """Do nothing: there is no connection."""

    async def wait_until_ready(self) -> None:
        """Return at once: this bus is always ready."""

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        subject = event.subject
        for consumer in self._consumers.values():
            if subject_matches(consumer.pattern, subject):
                consumer.put(event)

    async def newest(self, _subject: str) -> StoredEvent | None:
        """Return None: there is no stream."""
        return None

    async def consume(self, pattern: str, handler: Handler, *, durable: str) -> _Consumer:
        """Implement the port. Raises StateError if the durable name is in use or has another pattern."""
        self._check_open()
        consumer = self._consumers.setdefault(durable, _Consumer(durable, pattern, self._clock))
        if consumer.is_running:
            raise StateError(f"the durable name {durable!r} is in use", hint="stop the other consumer first")
        if consumer.pattern != pattern:
            raise StateError(f"the durable name {durable!r} is for {consumer.pattern!r}, not for {pattern!r}")
        consumer.start(handler)
        return consumer

    async def remove_consumer(self, durable: str) -> None:
        self._consumers.pop(durable, None)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(consumer.stop() for consumer in self._consumers.values()))
