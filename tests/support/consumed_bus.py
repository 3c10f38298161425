"""A durable bus with consumers in this process: a fake that keeps the contract of `agent.ports.ConsumerBus`."""

import asyncio
from collections import deque

from agent.adapters.memory_bus import MemoryDurableBus
from agent.domain.errors import StateError
from agent.domain.events import Event
from agent.domain.naming import subject_matches
from agent.ports import Clock, Handler
from agent.ports.dispatch import end_task, redelivery_delay, run_handler


class _Consumer:
    """A durable name of a `ConsumedMemoryBus` and its unacknowledged events: `agent.ports.Subscription`."""

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


class ConsumedMemoryBus(MemoryDurableBus):
    """`agent.ports.ConsumerBus`. A durable name starts with its first consumer: earlier events are not kept."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._consumers: dict[str, _Consumer] = {}

    async def publish(self, event: Event) -> None:
        await super().publish(event)
        for consumer in self._consumers.values():
            if subject_matches(consumer.pattern, event.subject):
                consumer.put(event)

    async def consume(self, pattern: str, handler: Handler, *, durable: str) -> _Consumer:
        self._check_open()
        consumer = self._consumers.setdefault(durable, _Consumer(durable, pattern, self._clock))
        if consumer.is_running:
            raise StateError(f"the durable name {durable!r} is in use")
        consumer.start(handler)
        return consumer

    async def remove_consumer(self, durable: str) -> None:
        self._consumers.pop(durable, None)

    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.gather(*(consumer.stop() for consumer in self._consumers.values()))
