"""The two buses: a volatile one, whose events may be lost and are found again, and a durable one for results."""

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


Handler = Callable[[Event], Awaitable[None]]
"""Handles one event. The bus logs an exception."""


class Subscription(Protocol):
    """A running subscription or consumer."""

    async def stop(self) -> None:
        """Stop delivery and cancel a running handler. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class BusState:
    """The bus in use (`memory`, `nats`), and since when.

    `ready` is false while the bus does not take events. `detail` is its address, or the reason why another bus is not
    in use. `since` also changes when a connection is replaced.
    """

    name: str
    ready: bool
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A position in a stream that outlives this process: when the stream was `created`, and its newest `sequence`.

    `created` is empty if the server does not permit to read it.
    """

    created: str
    sequence: int

    def has_lost(self, earlier: "StreamMark") -> bool:
        """Return whether the stream has lost events since the earlier mark: it was replaced or truncated."""
        replaced = self.created and earlier.created and self.created != earlier.created
        return bool(replaced) or self.sequence < earlier.sequence


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What the stream stores: an event, None if it is not valid.

    `position` identifies it in this stream and in one that replaces it.
    """

    event: Event | None
    position: str


class Bus(Protocol):
    """What both buses have."""

    @property
    def state(self) -> BusState: ...

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when `state` changes. It is called on the event loop and must be cheap."""
        ...

    async def aclose(self) -> None:
        """Stop all subscriptions. Idempotent."""
        ...


class VolatileBus(Bus, Protocol):
    """Delivers events at most once, in order per subject: sync requests, session ends and progress.

    An event that is lost is not delivered again. The agent finds what it meant: a rescan finds changed databases, and
    `DurableBus.newest` the last session end.
    """

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject, to the subscriptions that are active now.

        Raises BusError, transient if the bus is unreachable; WireError if the event cannot be encoded.
        """
        ...

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        """Pass events whose subject matches `pattern` (`*`: one token, `>`: the rest) to `handler`, one at a time.

        A slow handler misses events: a subscription keeps at most `agent.ports.dispatch.MAX_QUEUED` of them.
        """
        ...


class DurableBus(Bus, Protocol):
    """Stores events: results, and events about the archive and ingests."""

    @property
    def stream(self) -> StreamMark | None:
        """The last known position of the stream, for a bus whose events outlive this process.

        None for an in-process bus, and before the first connection. When `publish` returns, the position includes its
        event. `on_change` also reports that the stream has lost events.
        """
        ...

    @property
    def consumers(self) -> int | None:
        """How many consumers the stream had when it was last examined: after each new connection, and once an hour.

        None for an in-process bus, and if the server does not permit to examine the stream.
        """
        ...

    def check_connection(self) -> None:
        """Check the connection and the stream now, and replace a dead connection. Returns at once."""
        ...

    async def wait_until_ready(self) -> None:
        """Wait until `state` is ready."""
        ...

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject. When it returns, the event is stored; if it raises, it may be.

        Raises BusError, transient if the bus is unreachable; WireError if the event cannot be encoded.
        """
        ...

    async def newest(self, subject: str) -> StoredEvent | None:
        """Return the newest stored event on a subject, None if there is none.

        Raises BusError, not transient if there is no stream, or the server does not permit to read it.
        """
        ...

    async def remove_consumer(self, durable: str) -> None:
        """Remove a durable name, if it exists and the server permits it. Raises BusError if the bus is unreachable."""
        ...


class ConsumerBus(DurableBus, Protocol):
    """Delivers stored events to consumers at least once, in order per subject.

    A consumer receives one event at a time. The event is acked when the handler returns, whatever time that takes. If
    the handler raises or is cancelled, the event is delivered again, before later ones.
    """

    async def consume(self, pattern: str, handler: Handler, *, durable: str) -> Subscription:
        """Pass stored events whose subject matches `pattern` to `handler`.

        Events that are unacked when the consumer stops, and events published afterwards, are delivered to the next
        consumer of the name `durable`. A name that the bus does not know starts at the oldest stored event.
        """
        ...


class Responder(Protocol):
    """Answers requests over the bus: one reply per request, neither is stored."""

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        """Reply to each request on `subject` with the result of `answer`, which must not raise."""
        ...
