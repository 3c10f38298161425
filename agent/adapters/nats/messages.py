"""NATS messages and the events in them. Any client may publish, so each message is validated strictly."""

import hashlib

import structlog
from nats.aio.msg import Msg

from agent.domain.errors import WireError
from agent.domain.events import Event, SessionEnded, SyncResult
from agent.ports import Codec

HEADER_BYTES = 1024
"""Part of the server's max_payload that is reserved for headers."""

ALWAYS_LOGGED = 10
"""Refused messages that are logged as warnings; of the later ones, each thousandth is."""

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


def decoded(data: bytes, subject: str, codec: Codec) -> Event:
    """Return the event in a message. Raises WireError if it is invalid or on a subject that is not its own."""
    event = codec.decode(data, subject=subject)
    if event.subject != subject:
        raise WireError(f"{event.type} belongs on {event.subject!r}, but arrived on {subject[:80]!r}")
    return event


class Refusals:
    """Counts and logs the messages of a connection that are not valid events."""

    def __init__(self) -> None:
        self.count = 0

    def refuse(self, message: Msg, error: WireError, *, sequence: int = 0) -> None:
        """Log a message. `sequence`: its position in the stream, 0 if it is not from the stream."""
        self.count += 1
        log = _log.warning if self.count <= ALWAYS_LOGGED or self.count % 1000 == 0 else _log.debug
        log("message_refused", subject=message.subject[:200], sequence=sequence, reason=str(error), so_far=self.count)
