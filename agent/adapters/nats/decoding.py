"""From a message to an event: what anybody may have sent is looked at strictly before it gets any further."""

import hashlib

from nats.aio.msg import Msg

from agent.domain.errors import WireError
from agent.domain.events import Event, SessionEnded, SyncResult
from agent.ports import Codec


def written(event: Event, codec: Codec, *, most: int) -> bytes:
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


def opened(message: Msg, codec: Codec) -> Event:
    """Return the event in a message. Raises WireError, also for an event that stands on another one's subject."""
    event = codec.decode(message.data, subject=message.subject)
    if event.subject != message.subject:
        raise WireError(f"{event.type} belongs to {event.subject!r}, but came on {message.subject[:80]!r}")
    return event
