"""NATS messages and the events in them. Any client may publish, so each message is validated strictly."""

import hashlib
from collections.abc import Awaitable, Callable

import structlog
from nats.aio.msg import Msg

from agent.adapters.nats.errors import translated
from agent.domain.errors import BusError, WireError
from agent.domain.events import Event, SessionEnded, SyncResult
from agent.ports import Codec

ACK_SECONDS = 5.0

_log = structlog.get_logger()


def encoded(event: Event, codec: Codec, *, max_bytes: int) -> bytes:
    """Return the encoded event, within the limits of its readers and of the server (`max_bytes`).

    A result that is too long is abridged. Raises WireError.
    """
    data, max_bytes = codec.encode(event), min(codec.max_bytes, max_bytes)
    if len(data) > max_bytes and isinstance(event, SyncResult):
        data = codec.encode(event.abridged())
    if len(data) > max_bytes:
        raise WireError(f"{event.type} {event.id[:80]} is larger than the {max_bytes} bytes allowed")
    return data


def message_id(event: Event) -> str:
    """Return an event's unique ID within the stream, for the header `Nats-Msg-Id`.

    Event IDs are unique per source only: the agent of a system, or the sender.
    """
    sender = event.sender if isinstance(event, SessionEnded) else ""
    source = f"{hashlib.sha256(sender.encode()).hexdigest()[:16]}." if sender else ""
    return f"{event.system_id}.{source}{event.id}"


def decoded(message: Msg, codec: Codec) -> Event:
    """Return the event in a message. Raises WireError if it is invalid or on a subject that is not its own."""
    event = codec.decode(message.data, subject=message.subject)
    if event.subject != message.subject:
        raise WireError(f"{event.type} belongs on {event.subject!r}, but arrived on {message.subject[:80]!r}")
    return event


class JetStreamMessage:
    """A message of the stream. An unreachable server is not an error when settling: the message is redelivered."""

    def __init__(self, event: Event, message: Msg) -> None:
        self.event, self._message = event, message
        self.acked = False
        """Whether the server has confirmed the ack."""

    async def ack(self) -> None:
        """Acknowledge, and wait for the server's confirmation."""
        self.acked = await self._settle("ack", lambda: self._message.ack_sync(timeout=ACK_SECONDS))

    async def nak(self, delay: float) -> None:
        await self._settle("nak", lambda: self._message.nak(delay))

    async def in_progress(self) -> None:
        await self._settle("in_progress", self._message.in_progress)

    async def _settle(self, operation: str, send: Callable[[], Awaitable[object]]) -> bool:
        try:
            with translated(f"{operation} of an event"):
                await send()
        except BusError as error:
            _log.debug(
                "ack_failed",
                operation=operation,
                id=self.event.id,
                error=str(error),
                next_step="redelivery",
            )
            return False
        return True


class CoreMessage:
    """An event of core NATS, which is not stored and needs no acknowledgement."""

    def __init__(self, event: Event) -> None:
        self.event = event

    async def ack(self) -> None:
        pass

    async def nak(self, delay: float) -> None:
        pass

    async def in_progress(self) -> None:
        pass
