"""The durable bus: the stream AKOSHA_SYNC stores events, confirms each, and keeps the positions of consumers."""

import asyncio
from contextlib import suppress

import structlog

from agent.adapters.nats.client import Client
from agent.adapters.nats.consumer import NatsConsumer
from agent.adapters.nats.core import ConnectedBus, Shared
from agent.adapters.nats.errors import Denied, NoJetStream, StreamGone, translated
from agent.adapters.nats.messages import HEADER_BYTES, decoded, encoded, message_id
from agent.adapters.nats.stream import STREAM, Stream
from agent.domain.errors import BusError, StateError, WireError
from agent.domain.events import Event
from agent.ports import Handler, StoredEvent, StreamMark

_log = structlog.get_logger()


class NatsDurableBus(ConnectedBus):
    """`agent.ports.DurableBus` on JetStream. It owns the connection and closes it.

    It is ready while there is a connection, and nothing is known that prevents the stream from storing events or a
    consumer from receiving them.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._seconds = shared.options.patience.connect
        self._stream = Stream(shared.options.limits)
        self._stream_error: BusError | None = None
        self._refusal: BusError | None = None
        self._reported = ""
        self._check: asyncio.Task[None] | None = None
        self._consumers: list[NatsConsumer] = []
        self._changed = asyncio.Event()

    @property
    def stream(self) -> StreamMark | None:
        return self._stream.mark

    @property
    def consumers(self) -> int | None:
        return self._stream.consumers if self._connection.is_up else None

    async def wait_until_ready(self) -> None:
        await self._stream_examined()
        while self._error() is not None:
            await self._changed.wait()
            await self._stream_examined()

    def check_connection(self) -> None:
        """Implement the port."""
        self._connection.check_connection()
        if self._connection.is_up:
            self._start_check(self._connection.client())

    async def reset_client(self) -> None:
        """Implement `Reconnectable`. Pending calls fail with a transient error."""
        self._connection.renew()

    def connection_changed(self) -> None:
        """Look at the stream if there is a new connection, and notify the listeners."""
        if self._connection.is_up and not self._closed:
            self._refusal = None
            self._start_check(self._connection.client())
        self.notify()

    async def publish(self, event: Event) -> None:
        """Implement the port. When this returns, the server has confirmed that the stream stores the event.

        A stream that was deleted is created again after the error. Raises StateError if the bus is closed or the event
        is local only.
        """
        client = await self._client_to_publish(event)
        await self._stream_examined()
        if self._stream_error is not None:
            self._start_check(client)
            await self._stream_examined()
        # Behind a leaf node, no server answers requests about the stream, but its hub may store the event.
        if self._stream_error is not None and not isinstance(self._stream_error, NoJetStream):
            raise self._stream_error.with_traceback(None)
        with translated("reading the server's max_payload"):
            max_bytes = client.max_payload - HEADER_BYTES
        data = encoded(event, self._codec, max_bytes=max_bytes)
        try:
            await self._put(client, event, data)
        except BusError as error:
            if isinstance(error, StreamGone) and self._stream_error is not None:
                raise self._stream_error.with_traceback(None) from error
            if isinstance(error, StreamGone | Denied):
                self._refusal = error
            self._report()
            # A deleted stream is not always noticed: if another client subscribes to the subject, publishing times out.
            self._start_check(client)
            raise
        self._refusal = None
        self._stream_answered()

    async def newest(self, subject: str) -> StoredEvent | None:
        """Implement the port with a direct get. A stream without `allow_direct` answers none: that is NoJetStream."""
        client = self._connection.client()
        try:
            with translated(f"reading the newest event on {subject}"):
                answer = await client.request(f"$JS.API.DIRECT.GET.{STREAM}.{subject}", timeout=self._seconds)
        except Denied as error:
            raise BusError(error.message, hint=error.hint) from error
        except NoJetStream:
            raise
        except BusError:
            self._connection.suspect(client)
            raise
        self._stream_answered()
        headers = answer.headers or {}
        if "Nats-Sequence" not in headers:  # the status 404: there is none
            return None
        event: Event | None = None
        try:
            event = decoded(answer.data, subject, self._codec)
        except WireError as error:
            _log.debug("newest_event_unreadable", subject=subject, reason=str(error))
        return StoredEvent(event, f"{headers.get('Nats-Sequence', '')} {headers.get('Nats-Time-Stamp', '')}")

    async def consume(self, pattern: str, handler: Handler, *, durable: str) -> NatsConsumer:
        """Implement the port. If NATS is unreachable, the consumer starts when it can be reached.

        Raises StateError if the durable name is already in use in this process.
        """
        self._check_open()
        if any(one.durable == durable for one in self._consumers):
            raise StateError(f"the durable name {durable!r} is in use", hint="stop the other consumer first")
        consumer = NatsConsumer(
            pattern,
            durable,
            handler,
            shared=self._shared,
            check_stream=self._start_check,
            stream_examined=self._stream_examined,
            released=self._release,
            changed=self._report,
        )
        self._consumers.append(consumer)
        if self._connection.is_up:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await consumer.started.wait()
        return consumer

    async def remove_consumer(self, durable: str) -> None:
        """Implement the port. A consumer that cannot be reached is left: the server deletes it when it is inactive."""
        client = self._connection.client()
        with suppress(StreamGone, Denied, NoJetStream), translated(f"removing the consumer {durable}"):
            await client.jetstream(timeout=self._seconds).delete_consumer(STREAM, durable)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(consumer.stop() for consumer in self._consumers))
        if self._check is not None:
            self._check.cancel()
            await asyncio.wait({self._check})
        await self._connection.aclose()

    def _error(self) -> BusError | None:
        """Return the reason why the bus is not ready."""
        if not self._connection.is_up:
            return self._connection.last_error
        if self._stream_error is not None:
            return self._stream_error
        if self._refusal is not None:
            return self._refusal
        return next((one.last_error for one in self._consumers if one.last_error is not None), None)

    def _start_check(self, client: Client) -> None:
        """Start to examine the stream, instead of an earlier examination that has not ended."""
        if self._closed or client.lost.is_set():
            return
        if self._check is not None:
            self._check.cancel()
        self._check = asyncio.create_task(self._check_stream(client), name="nats-stream")

    async def _stream_examined(self) -> None:
        """Wait until the stream was examined on this connection.

        If it does not exist yet, and another client subscribes to the subject, publishing would only time out.
        """
        while self._check is not None and not self._check.done():
            await asyncio.wait({self._check})

    async def _check_stream(self, client: Client) -> None:
        """Create the stream if it does not exist; keep the reason if it cannot store events."""
        before = self._stream.mark
        try:
            with translated(f"preparing the stream {STREAM}"):
                examined = await self._stream.ensure(client, self._seconds)
        except BusError as error:
            if not client.lost.is_set():
                self._stream_error = error
            _log.debug("stream_unavailable", reason=str(error))
        else:
            self._stream_error = None
            if examined and isinstance(self._refusal, StreamGone):
                self._refusal = None
        mark = self._stream.mark
        if mark is not None and (before is None or mark.has_lost(before)):
            self.notify()
        else:
            self._report()

    async def _put(self, client: Client, event: Event, data: bytes) -> None:
        headers, sent_at = {"Nats-Msg-Id": message_id(event)}, self._stream.mark
        try:
            with translated(f"publishing {event.id}"):
                confirmed = await client.jetstream(timeout=self._seconds).publish(event.subject, data, headers=headers)
                stream, sequence = confirmed.stream, int(confirmed.seq)
        except BusError:
            self._connection.suspect(client)
            raise
        if stream != STREAM:
            raise BusError(
                f"publishing {event.id}: the stream {stream} stored it instead of {STREAM}",
                hint=f"remove the subjects of {STREAM} from that stream",
                transient=True,
            )
        if not confirmed.duplicate and self._stream.has_stored(sequence, sent_at=sent_at):
            self._start_check(client)

    def _stream_answered(self) -> None:
        """Forget that no server answers requests about the stream: they do not pass from a leaf node to its hub."""
        if isinstance(self._stream_error, NoJetStream):
            self._stream_error = None
        self._report()

    def _report(self) -> None:
        """Notify the listeners if the bus is ready now and was not, or has another reason not to be."""
        if str(self._error() or "") != self._reported:
            self.notify()

    def notify(self) -> None:
        self._reported = str(self._error() or "")
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        super().notify()

    def _release(self, consumer: NatsConsumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self._report()
