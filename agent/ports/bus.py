"""Events on their way: at least once, in order per subject."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from agent.domain.events import Event


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
        """Still at work: the time to ack starts anew."""
        ...


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """Take no more events; a handler at work is cancelled, its event unacked. Idempotent."""
        ...


class EventBus(Protocol):
    """At least once, in order per subject.

    One event at a time per subscription; the next comes after an ack. A handler that raises, or returns with neither
    ack nor nak, means nak; one that stays silent for longer than the bus's ack wait is cancelled and its event
    delivered again.
    """

    async def publish(self, event: Event) -> None:
        """Publish on the event's own subject. When it returns, the bus has it; else it raises and may have it."""
        ...

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """Hand over events whose subject matches `pattern` (`*` a token, `>` the rest).

        With a `durable` name, what is not acked when the subscription stops waits for the next of that name, and so
        does what is published in between. Without one, the subscription sees what is published from now on.
        """
        ...

    async def aclose(self) -> None:
        """Stop all subscriptions. Idempotent."""
        ...
