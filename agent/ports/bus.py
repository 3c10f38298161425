"""Events on their way: at least once, in order per subject."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.events import Event


class Codec(Protocol):
    """Events as bytes and back."""

    @property
    def max_bytes(self) -> int:
        """The largest event that `decode` takes. `encode` writes larger ones, too: abridging them is the caller's."""
        ...

    def encode(self, event: Event, /) -> bytes:
        """Return the event's bytes. Raises WireError for one that the format cannot hold."""
        ...

    def decode(self, data: bytes, /, *, subject: str | None = None) -> Event:
        """Return the event; its content is checked. Raises WireError with what is wrong.

        `subject`: where on the bus it came, for an event whose content does not name its system.
        """
        ...


class Message(Protocol):
    """One delivery of an event to one subscription. One of `ack` and `nak` ends it; a second call does nothing."""

    @property
    def event(self) -> Event: ...

    async def ack(self) -> None:
        """Done: it is not delivered again."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Deliver it again after `delay` seconds. Later events of the subscription wait behind it."""
        ...

    async def in_progress(self) -> None:
        """Still at work: the time to ack starts again."""
        ...


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """Take no more events; a handler at work is cancelled, its event unacked. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class BusState:
    """Which bus carries events now (`memory`, `nats`), and since when.

    `ready` is false while events wait for it. `detail` says where it is, or why another one is not in use.
    """

    name: str
    ready: bool
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class StreamMark:
    """How far a stream that outlives this process has come: when it was `created`, and its newest `sequence`."""

    created: str
    sequence: int

    def has_lost(self, earlier: "StreamMark") -> bool:
        """Say whether events that were in the stream at an earlier mark are no longer in it: another stream, or cut."""
        return self.created != earlier.created or self.sequence < earlier.sequence


class EventBus(Protocol):
    """At least once, in order per subject.

    One event at a time per subscription; the next comes after an ack. A handler that raises, or returns with neither
    ack nor nak, means nak; one that stays silent for longer than the bus's ack wait is cancelled and its event
    delivered again. Progress is an exception: it goes to current listeners only, and may be lost.
    """

    @property
    def state(self) -> BusState: ...

    @property
    def stream(self) -> StreamMark | None:
        """Where events outlive this process: how far that had come when it was last in reach.

        None in-process, and before it was in reach. What `publish` has just put there is counted when it returns.
        """
        ...

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener`, on the event loop, when `state` has changed, a connection was made or lost, or the stream
        has lost events. It must be cheap.
        """
        ...

    async def wait_until_ready(self) -> None:
        """Return when `state` is ready."""
        ...

    def check_connection(self) -> None:
        """The machine slept, or its network changed: look now at what may be dead, and replace it. Returns at once."""
        ...

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject. When it returns, the bus has it; else it raises and may have it.

        Raises BusError, transient where the bus is out of reach.
        """
        ...

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """Hand over events whose subject matches `pattern` (`*` a token, `>` the rest).

        With a `durable` name, what is not acked when the subscription stops waits for the next of that name, and so
        does what is published in between; a name that the bus does not know begins with the oldest event it keeps.
        Without one, the subscription sees what is published from now on.
        """
        ...

    async def aclose(self) -> None:
        """Stop all subscriptions. Idempotent."""
        ...


class Responder(Protocol):
    """Answers questions that others ask over the bus: one question, one answer, nothing kept."""

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        """Answer each question on `subject` with what `answer` makes of it; it must not raise."""
        ...
