"""The in-process event bus, used if NATS is not configured or not reachable.

Each subscription has a mailbox and a task that hands over its oldest message, one event at a time. A message is removed
from the mailbox by its ack only: after a nak, an error, a stalled handler or a stopped subscription, it is still the
oldest. The mailbox of a durable name outlives its subscription.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from agent.domain.errors import StateError
from agent.domain.events import Event
from agent.domain.naming import subject_matches
from agent.ports import BusState, Clock, Handler
from agent.ports.dispatch import MessageDispatcher

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _MemoryMessage:
    """An event in a mailbox, delivered at `not_before` (monotonic) at the earliest."""

    event: Event
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class _Mailbox:
    """The unacknowledged messages of one subscription or durable name, in order."""

    name: str
    pattern: str
    durable: bool
    limit: int
    messages: deque[_MemoryMessage] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Event) -> None:
        """Append an event. A full mailbox discards its oldest message except the first, which may be in delivery."""
        if len(self.messages) >= self.limit:
            discarded = self.messages[1].event
            del self.messages[1]
            _log.warning(
                "event_discarded",
                subscription=self.name,
                id=discarded.id,
                subject=discarded.subject,
                limit=self.limit,
            )
        self.messages.append(_MemoryMessage(event))
        self.arrived.set()

    async def head(self) -> _MemoryMessage:
        """Wait for a message and return the oldest."""
        while not self.messages:
            self.arrived.clear()
            await self.arrived.wait()
        return self.messages[0]

    def drop(self, message: _MemoryMessage) -> None:
        """Remove the message if it is still the head."""
        if self.messages and self.messages[0] is message:
            self.messages.popleft()


class _RawMessage:
    """A message in its mailbox: `agent.ports.dispatch.RawMessage`."""

    def __init__(self, mailbox: _Mailbox, message: _MemoryMessage, clock: Clock) -> None:
        self._mailbox, self._message, self._clock = mailbox, message, clock

    @property
    def event(self) -> Event:
        return self._message.event

    async def ack(self) -> None:
        self._mailbox.drop(self._message)

    async def nak(self, delay: float) -> None:
        self._message.not_before = self._clock.monotonic() + delay

    async def in_progress(self) -> None:
        pass


class _Subscription:
    """Hands a mailbox's messages to a handler until it is stopped: `agent.ports.Subscription`."""

    def __init__(
        self,
        mailbox: _Mailbox,
        handler: Handler,
        *,
        clock: Clock,
        ack_wait_seconds: float,
        released: Callable[[_Mailbox], None],
    ) -> None:
        self._mailbox, self._clock = mailbox, clock
        self._dispatcher = MessageDispatcher(mailbox.name, handler, clock=clock, ack_wait_seconds=ack_wait_seconds)
        self.worker = asyncio.create_task(self._run(), name=f"bus-{mailbox.name}")
        self.worker.add_done_callback(lambda _: released(mailbox))

    async def stop(self) -> None:
        self.worker.cancel()
        await asyncio.wait({self.worker})

    async def _run(self) -> None:
        while True:
            message = await self._mailbox.head()
            # Sleep even for 0 s: a handler that naks without a delay must not block the event loop.
            await self._clock.sleep(message.not_before - self._clock.monotonic())
            await self._dispatcher.dispatch(_RawMessage(self._mailbox, message, self._clock))


class MemoryBus:
    """`agent.ports.EventBus` within one process and one event loop. Its messages are lost when the process ends.

    `ack_wait_seconds` is how long a handler may report no progress. A mailbox keeps at most `limit` events; then it
    discards its oldest with a warning.
    """

    def __init__(self, clock: Clock, *, ack_wait_seconds: float = 60.0, limit: int = 10_000) -> None:
        self._clock, self._ack_wait, self._limit = clock, ack_wait_seconds, max(limit, 2)
        self._mailboxes: list[_Mailbox] = []
        self._running: dict[_Mailbox, _Subscription] = {}
        self._closed = False
        self.state = BusState("memory", ready=True, detail="in this process", since=clock.now())
        self.stream = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Ignore the listener: the state never changes."""

    async def wait_until_ready(self) -> None:
        """Return at once: this bus is always ready."""

    def check_connection(self) -> None:
        """Do nothing: there is no connection."""

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed."""
        self._check_open()
        subject = event.subject
        for mailbox in self._mailboxes:
            if subject_matches(mailbox.pattern, subject):
                mailbox.put(event)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> _Subscription:
        """Implement the port. Raises StateError if the durable name is in use or has another pattern."""
        self._check_open()
        mailbox = self._durable_mailbox(durable) if durable is not None else None
        if mailbox is None:
            mailbox = _Mailbox(durable or pattern, pattern, durable=durable is not None, limit=self._limit)
            self._mailboxes.append(mailbox)
        elif mailbox in self._running:
            raise StateError(f"the durable subscription {durable!r} is in use", hint="stop the other one first")
        elif mailbox.pattern != pattern:
            raise StateError(f"the durable subscription {durable!r} is for {mailbox.pattern!r}, not for {pattern!r}")
        self._running[mailbox] = subscription = _Subscription(
            mailbox, handler, clock=self._clock, ack_wait_seconds=self._ack_wait, released=self._release
        )
        return subscription

    async def aclose(self) -> None:
        self._closed = True
        workers = {subscription.worker for subscription in self._running.values()}
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        self._mailboxes.clear()

    def _durable_mailbox(self, durable: str) -> _Mailbox | None:
        return next((box for box in self._mailboxes if box.durable and box.name == durable), None)

    def _release(self, mailbox: _Mailbox) -> None:
        """Remove the mailbox of an ended subscription, unless its name is durable."""
        self._running.pop(mailbox, None)
        if not mailbox.durable and mailbox in self._mailboxes:
            self._mailboxes.remove(mailbox)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")
