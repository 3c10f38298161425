"""Reads stored events with direct gets, so that a viewer of a fleet makes no consumer and leaves the stream as it is.

A direct get of several messages has one request and many answers. Each answer with a message has the headers
`Nats-Subject` and `Nats-Sequence`, which the server writes after those of the publisher; the last answer has the status
204. nats-server has this from 2.11 on.
"""

import json
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

from nats.aio.msg import Msg

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.core import NatsVolatileBus, Shared
from agent.adapters.nats.errors import translated
from agent.adapters.nats.inbox import open_inbox
from agent.adapters.nats.messages import decoded
from agent.adapters.nats.options import NatsOptions
from agent.adapters.nats.stream import STREAM
from agent.domain.errors import BusError, WireError
from agent.ports import Clock, Codec, Handler, StreamEntry

DIRECT_GET = f"$JS.API.DIRECT.GET.{STREAM}"

SUBJECTS_AT_ONCE = 500
"""Subjects in one request. The server answers 1,024 at most."""

BYTES_AT_ONCE = 8 * 2**20
"""Bytes of the answers to one request, so that large messages do not fill the memory."""

_LONGEST_NUMBER = 20
"""Digits of the largest unsigned number of 64 bits."""

_END, _NOTHING, _INVALID = "204", "404", "408"


class NatsEventReader:
    """`agent.ports.EventReader` on the stream AKOSHA_SYNC. `open` it, and close it with `aclose`.

    A request that the server does not answer within the time limit of the options fails. A lost connection is replaced.
    """

    def __init__(self, options: NatsOptions, codec: Codec, clock: Clock) -> None:
        self._codec, self._seconds, self.location = codec, options.patience.connect, options.location
        self._connection = NatsConnection(options, prepare=self._prepare, changed=self._changed)
        self._live = NatsVolatileBus(Shared(options, codec, clock, self._connection))
        self._reconnected: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, options: NatsOptions, codec: Codec, *, clock: Clock) -> "NatsEventReader":
        """Return after the first attempt to connect. Does not raise if NATS is unreachable: the other methods do."""
        reader = cls(options, codec, clock)
        reader._connection.start()
        await reader._connection.first_attempt(reader._seconds * len(options.servers) + 1)
        return reader

    @property
    def problem(self) -> str:
        state = self._live.state
        return "" if state.ready else state.detail

    async def subjects(self, pattern: str) -> Mapping[str, int]:
        client = self._connection.client()
        with translated(f"listing the subjects of the stream {STREAM}"):
            info = await client.jetstream(timeout=self._seconds).stream_info(STREAM, subjects_filter=pattern)
        if not info.config.allow_direct:
            hint = f"nats stream edit {STREAM} --allow-direct"
            raise BusError(f"the stream {STREAM} does not allow direct gets", hint=hint)
        return info.state.subjects or {}

    async def newest(self, subjects: Collection[str]) -> Mapping[str, StreamEntry]:
        found: dict[str, StreamEntry] = {}
        left = [*subjects]
        while left:
            asked, left = left[:SUBJECTS_AT_ONCE], left[SUBJECTS_AT_ONCE:]
            before, pending = len(found), 0
            async with aclosing(self._get(multi_last=asked, max_bytes=BYTES_AT_ONCE)) as answers:
                async for message in answers:
                    entry = self._entry(message)
                    if entry is None:
                        pending = _number(message, "Nats-Num-Pending")
                    else:
                        found[entry.subject] = entry
            if pending and len(found) > before:  # more bytes than one request returns
                left = [subject for subject in asked if subject not in found] + left
        return found

    async def first_after(self, subject: str, sequence: int) -> tuple[StreamEntry, int] | None:
        async with aclosing(self._get(seq=sequence + 1, next_by_subj=subject, batch=1)) as answers:
            async for message in answers:
                if (entry := self._entry(message)) is not None:
                    return entry, 1 + _number(message, "Nats-Num-Pending")
        return None

    async def follow(self, patterns: Collection[str], handler: Handler, reconnected: Callable[[], None]) -> None:
        for pattern in patterns:
            await self._live.subscribe(pattern, handler)
        self._reconnected = reconnected

    async def aclose(self) -> None:
        await self._live.aclose()
        await self._connection.aclose()

    async def _prepare(self, client: Client) -> None:
        await self._live.restore(client)

    def _changed(self) -> None:
        self._live.notify()
        self._reconnected()

    async def _get(self, **request: object) -> AsyncGenerator[Msg, None]:
        """Yield the answers to a direct get: the messages, and the last one, which has a status instead.

        Raises BusError.
        """
        async with open_inbox(self._connection.client()) as inbox:
            with translated("reading stored events"):
                await inbox.request(DIRECT_GET, json.dumps(request).encode())
            while True:
                with translated("reading stored events"):
                    message = await inbox.next(self._seconds)
                if not message.headers:  # headers of a stored message that cannot be read
                    continue
                if "Nats-Subject" not in message.headers:
                    _check_end(message.headers)
                    yield message
                    return
                yield message

    def _entry(self, message: Msg) -> StreamEntry | None:
        """Return the stored message in an answer, None for the last answer, which has none."""
        headers = message.headers or {}
        subject, sequence = headers.get("Nats-Subject", ""), _number(message, "Nats-Sequence")
        if not subject:
            return None
        stored_at = _time(headers.get("Nats-Time-Stamp", ""))
        try:
            event = decoded(message.data, subject, self._codec)
        except WireError as error:
            return StreamEntry(
                subject=subject, sequence=sequence, stored_at=stored_at, event=None, problem=error.message
            )
        return StreamEntry(subject=subject, sequence=sequence, stored_at=stored_at, event=event)


def _check_end(headers: Mapping[str, str]) -> None:
    """Check the status of the answer after the last message. Raises BusError unless all messages were sent."""
    status, description = headers.get("Status", ""), headers.get("Description", "")
    if status == _INVALID:
        hint = "update nats-server: direct gets of several messages need version 2.11 or later"
        raise BusError(f"reading stored events: {description}", hint=hint)
    if status not in (_END, _NOTHING):
        raise BusError(f"reading stored events: {description or status or 'unexpected answer'}", transient=True)


def _number(message: Msg, header: str) -> int:
    """Return a header's number, 0 if it has none."""
    text = (message.headers or {}).get(header, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER else 0


def _time(text: str) -> datetime:
    """Return the server's time of a message, which has nanoseconds; the oldest possible time if it is invalid."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
