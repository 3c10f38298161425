"""Messages and the events in them: what anybody may have sent is checked strictly before it gets any further."""

import hashlib
from collections.abc import Awaitable, Callable

import structlog
from nats.aio.msg import Msg

from agent.adapters.nats.errors import translated
from agent.domain.errors import BusError, WireError
from agent.domain.events import Event, SessionEnded, SyncResult
from agent.ports import Codec


def encoded(event: Event, codec: Codec, *, most: int) -> bytes:
    """Return the event as bytes that its readers take, and the server (`most`): a result that is too long is abridged.

    Raises WireError.
    """
    data, most = codec.encode(event), min(codec.max_bytes, most)
    if len(data) > most and isinstance(event, SyncResult):
        data = codec.encode(event.abridged())
    if len(data) > most:
        raise WireError(f"{event.type} {event.id[:80]} is larger than the {most} bytes allowed")
    return data


def message_id(event: Event) -> str:
    """Return what makes an event one of its kind within the stream, for the header `Nats-Msg-Id`.

    Ids are unique per source, which is a system's agent, or the sender.
    """
    sender = event.sender if isinstance(event, SessionEnded) else ""
    whose = f"{hashlib.sha256(sender.encode()).hexdigest()[:16]}." if sender else ""
    return f"{event.system_id}.{whose}{event.id}"


def decoded(message: Msg, codec: Codec) -> Event:
    """Return the event in a message. Raises WireError, also for an event on another one's subject."""
    event = codec.decode(message.data, subject=message.subject)
    if event.subject != message.subject:
        raise WireError(f"{event.type} belongs to {event.subject!r}, but came on {message.subject[:80]!r}")
    return event


ACK_SECONDS = 5.0

_log = structlog.get_logger()


class JetStreamMessage:
    """Settle a message. That the server cannot be reached is no error: the message comes again."""

    def __init__(self, event: Event, message: Msg) -> None:
        self.event, self._message = event, message
        self.acked = False
        """Whether the server has confirmed the ack."""

    async def ack(self) -> None:
        """Acknowledge, and wait for the confirmation of the server."""
        self.acked = await self._told("ack", lambda: self._message.ack_sync(timeout=ACK_SECONDS))

    async def nak(self, delay: float) -> None:
        await self._told("nak", lambda: self._message.nak(delay))

    async def in_progress(self) -> None:
        await self._told("in_progress", self._message.in_progress)

    async def _told(self, what: str, telling: Callable[[], Awaitable[object]]) -> bool:
        try:
            with translated(f"{what} of an event"):
                await telling()
        except BusError as error:
            _log.debug(
                "ack_failed", operation=what, id=self.event.id, error=str(error), next_step="the event comes again"
            )
            return False
        return True


class CoreMessage:
    """An event that no stream keeps: there is nobody to settle it with."""

    def __init__(self, event: Event) -> None:
        self.event = event

    async def ack(self) -> None:
        pass

    async def nak(self, delay: float) -> None:
        pass

    async def in_progress(self) -> None:
        pass
