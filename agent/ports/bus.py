"""Delivery of events: at least once, in order per subject."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.events import Event


class Codec(Protocol):
    """Encodes events to bytes and decodes them."""

    @property
    def max_bytes(self) -> int:
        """Maximum size of an event for `decode`. `encode` also returns larger ones: the caller must abridge them."""
        ...

    def encode(self, event: Event, /) -> bytes:
        """Return the event's bytes. Raises WireError if the format cannot represent it."""
        ...

    def decode(self, data: bytes, /, *, subject: str | None = None) -> Event:
        """Return the event, with its content checked. Raises WireError with the problem.

        `subject` is the subject on which the event arrived, for an event whose content does not name its system.
        """
        ...


class Message(Protocol):
    """One delivery of an event to one subscription. `ack` or `nak` settles it; later calls do nothing."""

    @property
    def event(self) -> Event: ...

    async def ack(self) -> None:
        """Mark the event as handled: it is not delivered again."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Request redelivery after `delay` seconds. Later events of the subscription wait for it."""
        ...

    async def in_progress(self) -> None:
        """Restart the ack wait, because the handler still works."""
        ...


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """Stop delivery. A running handler is cancelled, and its event stays unacked. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class BusState:
    """The bus in use (`memory`, `nats`), and since when.

    `ready` is false while events wait for the bus. `detail` is its address, or the reason why another bus is not in
    use.
    """

    name: str
    ready: bool
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A position in a stream that outlives this process: when the stream was `created`, and its newest `sequence`."""

    created: str
    sequence: int

    def has_lost(self, earlier: "StreamMark") -> bool:
        """Return whether the stream has lost events since the earlier mark: it was replaced or truncated."""
        return self.created != earlier.created or self.sequence < earlier.sequence


class EventBus(Protocol):
    """Delivers events at least once, in order per subject.

    A subscription receives one event at a time, the next one after an ack. If a handler raises, or returns with neither
    ack nor nak, that counts as a nak. If a handler reports no progress for longer than the bus's ack wait, it is
    cancelled, and its event is delivered again. Progress events are an exception: they reach current subscriptions
    only, and may be lost.
    """

    @property
    def state(self) -> BusState: ...

    @property
    def stream(self) -> StreamMark | None:
        """The last known position of the stream, for a bus whose events outlive this process.

        None for an in-process bus, and before the first connection. When `publish` returns, the position includes its
        event.
        """
        ...

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when `state` changes, a connection is made or lost, or the stream has lost events.

        It is called on the event loop and must be cheap.
        """
        ...

    async def wait_until_ready(self) -> None:
        """Wait until `state` is ready."""
        ...

    def check_connection(self) -> None:
        """Check the connection now and replace it if it is dead, after sleep or a network change. Returns at once."""
        ...

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject. When it returns, the bus has the event; if it raises, it may have it.

        Raises BusError, transient if the bus is unreachable.
        """
        ...

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """Pass events whose subject matches `pattern` (`*`: one token, `>`: the rest) to `handler`.

        With a `durable` name, events that are unacked when the subscription stops, and events published afterwards, are
        delivered to the next subscription of that name. A name that the bus does not know starts at the oldest stored
        event. Without a name, the subscription receives events that are published from now on.
        """
        ...

    async def aclose(self) -> None:
        """Stop all subscriptions. Idempotent."""
        ...


class Responder(Protocol):
    """Answers requests over the bus: one reply per request, neither is stored."""

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        """Reply to each request on `subject` with the result of `answer`, which must not raise."""
        ...
