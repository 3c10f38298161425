"""The in-process event bus: what the agent runs on where there is no NATS, or while none answers.

Each subscription has a mailbox, and a task that hands over its head, one event at a time. The head leaves the mailbox
with its ack and not before, so everything else (a nak, an error, a wedged handler, a stopped subscription) is the
same thing: the head is still there. A durable name is a mailbox that outlives its subscription.
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
    """An event in a mailbox. Not to be delivered before `not_before` (monotonic)."""

    event: Event
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class _Mailbox:
    """What one subscription, or one durable name, has yet to ack, in order."""

    name: str
    pattern: str
    durable: bool
    limit: int
    messages: deque[_MemoryMessage] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Event) -> None:
        """Append; a mailbox that is full loses its oldest, but never the one that may be in hand."""
        if len(self.messages) >= self.limit:
            lost = self.messages[1].event
            del self.messages[1]
            _log.warning("event_discarded", subscription=self.name, id=lost.id, subject=lost.subject, limit=self.limit)
        self.messages.append(_MemoryMessage(event))
        self.arrived.set()

    async def head(self) -> _MemoryMessage:
        """Return the oldest message, when there is one."""
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
            # Also where there is nothing to wait for: a handler that naks without a delay must not block the loop.
            await self._clock.sleep(message.not_before - self._clock.monotonic())
            await self._dispatcher.dispatch(_RawMessage(self._mailbox, message, self._clock))


class MemoryBus:
    """`agent.ports.EventBus` within one process and one event loop. What it holds ends with the process.

    `ack_wait_seconds` is how long a handler may stay silent. A mailbox keeps at most `limit` events and then
    discards its oldest, with a warning.
    """

    def __init__(self, clock: Clock, *, ack_wait_seconds: float = 60.0, limit: int = 10_000) -> None:
        self._clock, self._ack_wait, self._limit = clock, ack_wait_seconds, max(limit, 2)
        self._mailboxes: list[_Mailbox] = []
        self._running: dict[_Mailbox, _Subscription] = {}
        self._closed = False
        self.state = BusState("memory", ready=True, detail="in this process", since=clock.now())
        self.stream = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Nothing ever changes here."""

    async def wait_until_ready(self) -> None:
        """It always is."""

    def check_connection(self) -> None:
        """Nothing here dies."""

    async def publish(self, event: Event) -> None:
        """As the port says. Raises StateError on a closed bus."""
        self._check_open()
        subject = event.subject
        for mailbox in self._mailboxes:
            if subject_matches(mailbox.pattern, subject):
                mailbox.put(event)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> _Subscription:
        """As the port says. Raises StateError where the durable name is in use, or has another pattern."""
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
        """Its subscription has ended; a durable one's messages stay."""
        self._running.pop(mailbox, None)
        if not mailbox.durable and mailbox in self._mailboxes:
            self._mailboxes.remove(mailbox)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")
