"""The event bus on NATS JetStream, between agents, Session-Buddy, the Akosha side and other programs.

The stream AKOSHA_SYNC stores the events; each durable name is a consumer in it. Progress events go over core NATS and
are not stored.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

import structlog

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.consumer import DurableConsumer
from agent.adapters.nats.errors import StreamGone, translated
from agent.adapters.nats.messages import encoded, message_id
from agent.adapters.nats.options import NatsOptions
from agent.adapters.nats.request_reply import NatsResponder
from agent.adapters.nats.stream import STREAM, Stream
from agent.adapters.nats.subscription import NatsSubscription
from agent.domain.errors import BusError, StateError
from agent.domain.events import Event, SyncAsked, SyncProgress
from agent.ports import BusState, Clock, Codec, Handler, StreamMark
from agent.ports.dispatch import MessageDispatcher

FIRST_ATTEMPT_SECONDS = 1.0
"""How long `open` waits for NATS before it returns without a connection."""

HEADER_BYTES = 1024
"""Part of the server's max_payload that is reserved for headers."""

_log = structlog.get_logger()


class NatsBus:
    """`agent.ports.EventBus` and `agent.ports.Responder`. Create it with `open` or `begin`, close it with `aclose`.

    `wait_for_connection`: `publish` waits for a connection; otherwise it raises BusError at once if there is none.
    """

    def __init__(self, options: NatsOptions, codec: Codec, clock: Clock, *, wait_for_connection: bool) -> None:
        self._options, self._codec, self._clock, self._wait_for_connection = options, codec, clock, wait_for_connection
        self._stream = Stream(options.limits)
        self._connection = NatsConnection(options, clock, prepare=self._prepare, changed=self._connection_changed)
        self._recreating = asyncio.Lock()
        self._subscriptions: list[NatsSubscription | NatsResponder] = []
        self._listeners: list[Callable[[], None]] = []
        self._closed = False
        self._was_ready, self._since = False, clock.now()
        self.refused = 0
        """Number of messages removed because they are not valid events."""

    @classmethod
    async def open(cls, options: NatsOptions, codec: Codec, *, clock: Clock, wait_for_connection: bool = False) -> Self:
        """Start to connect; return after the first attempt or one second. Does not raise if NATS is unreachable."""
        bus = cls.begin(options, codec, clock=clock, wait_for_connection=wait_for_connection)
        await bus.first_attempt()
        return bus

    @classmethod
    def begin(cls, options: NatsOptions, codec: Codec, *, clock: Clock, wait_for_connection: bool = False) -> Self:
        """Start to connect in the background and return at once."""
        bus = cls(options, codec, clock, wait_for_connection=wait_for_connection)
        bus.start()
        return bus

    def start(self) -> None:
        """Start the task that connects and reconnects until the bus is closed."""
        self._connection.start()

    async def first_attempt(self) -> None:
        """Return after the first attempt to connect, whether it succeeded or not, or after one second."""
        await self._connection.first_attempt(FIRST_ATTEMPT_SECONDS)

    @property
    def state(self) -> BusState:
        if self._is_ready:
            return BusState("nats", ready=True, detail=self._options.location, since=self._since)
        errors = (one.last_error for one in self._subscriptions if isinstance(one, NatsSubscription))
        last_error = next(filter(None, errors), None) if self._connection.is_up else self._connection.last_error
        detail = str(last_error or f"subscribing at {self._options.location}")
        return BusState("nats", ready=False, detail=detail, since=self._since)

    @property
    def _is_ready(self) -> bool:
        """Whether the bus is connected and every subscription is active: otherwise published events have no receiver.

        Subscriptions to progress only do not count: progress may be lost, and each command that shows it subscribes.
        """
        ready = (one.ready.is_set() for one in self._subscriptions if isinstance(one, NatsSubscription) and one.pulls)
        return self._connection.is_up and all(ready)

    @property
    def stream(self) -> StreamMark | None:
        return self._stream.mark

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    async def wait_until_ready(self) -> None:
        await self._connection.wait()
        for one in list(self._subscriptions):
            await one.ready.wait()

    def check_connection(self) -> None:
        self._connection.check_connection()

    async def reset_client(self) -> None:
        """Implement `Reconnectable`. Pending calls fail with a transient error."""
        self._connection.renew()

    async def publish(self, event: Event) -> None:
        """Implement the port. When this returns, the server has confirmed that the stream stores the event.

        Raises WireError if the event cannot be encoded, StateError if the bus is closed or the event is local only.
        """
        self._check_open()
        if isinstance(event, SyncAsked):
            raise StateError(f"{event.type} is a local event: it is not published on the bus")
        wait_for_connection = self._wait_for_connection and not isinstance(event, SyncProgress)
        client = await self._connection.wait() if wait_for_connection else self._connection.client()
        with translated("reading the server's max_payload", client):
            max_bytes = client.max_payload - HEADER_BYTES
        data = encoded(event, self._codec, max_bytes=max_bytes)
        if isinstance(event, SyncProgress):
            with translated("publishing progress", client):
                await client.publish(event.subject, data)
            return
        try:
            await self._put(client, event, data)
        except BusError as error:
            # If a core NATS subscriber listens on the subject, publishing to a deleted stream only times out.
            if not (isinstance(error, StreamGone) or await self._is_gone(client)):
                raise
            await self._recreate_stream(client)
            await self._put(client, event, data)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> NatsSubscription:
        """Implement the port. If NATS is unreachable, the subscription starts when it can be reached.

        Raises StateError if the durable name is already in use in this process.
        """
        self._check_open()
        if durable is not None and any(
            isinstance(one, NatsSubscription) and one.consumer.durable == durable for one in self._subscriptions
        ):
            raise StateError(f"the durable subscription {durable!r} is in use", hint="stop the other one first")
        name = durable or pattern
        dispatcher = MessageDispatcher(
            name, handler, clock=self._clock, ack_wait_seconds=self._options.patience.ack_wait
        )
        subscription = NatsSubscription(
            DurableConsumer(pattern, durable, self._options),
            dispatcher,
            connection=self._connection,
            stream=self._stream,
            codec=self._codec,
            recreate_stream=self._recreate_stream,
            released=self._release,
            refused=self._count,
            changed=self._check_ready,
        )
        self._subscriptions.append(subscription)
        self._check_ready()
        await self._wait_started(subscription)
        return subscription

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> NatsResponder:
        self._check_open()
        responder = NatsResponder(subject, answer, connection=self._connection)
        self._subscriptions.append(responder)
        await self._wait_started(responder)
        return responder

    async def aclose(self) -> None:
        self._closed = True
        stopping = [asyncio.create_task(one.stop(), name="bus-stop") for one in self._subscriptions]
        if stopping:
            await asyncio.wait(stopping)
        await self._connection.aclose()

    async def _put(self, client: Client, event: Event, data: bytes) -> None:
        seconds = self._options.patience.connect
        headers = {"Nats-Msg-Id": message_id(event)}
        try:
            with translated(f"publishing {event.id}", client):
                confirmed = await client.jetstream(timeout=seconds).publish(event.subject, data, headers=headers)
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
        self._stream.advance(sequence)

    async def _is_gone(self, client: Client) -> bool:
        """Return whether the server confirms that the stream does not exist."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                return client.is_connected and not await self._stream.exists(client, self._options.patience.connect)
        except BusError:
            return False

    async def _prepare(self, client: Client) -> None:
        """Create the stream if it does not exist. Notify the listeners if it was replaced or has lost events."""
        before = self._stream.mark
        with translated(f"preparing the stream {STREAM}", client):
            await self._stream.ensure(client, self._options.patience.connect)
        after = self._stream.mark
        if before is None or (after is not None and after.has_lost(before)):
            self._notify()

    async def _recreate_stream(self, client: Client) -> None:
        """Create the stream again after it was deleted while the connection was up."""
        async with self._recreating:
            await self._prepare(client)

    async def _wait_started(self, one: "NatsSubscription | NatsResponder") -> None:
        """If NATS is connected, wait until the subscription is active or its task has ended."""
        if self._connection.is_up:
            ready = asyncio.create_task(one.ready.wait(), name="bus-subscribed")
            try:
                ends: set[asyncio.Task[object]] = {ready, one.worker}
                seconds = self._options.patience.connect
                await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()

    def _connection_changed(self) -> None:
        """Notify the listeners of a new or lost connection, even before every subscription is ready.

        What waits for a connection is worth another attempt.
        """
        self._check_ready()
        self._notify()

    def _check_ready(self) -> None:
        """Notify the listeners if `_is_ready` has changed."""
        if self._is_ready != self._was_ready:
            self._was_ready, self._since = self._is_ready, self._clock.now()
            self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    def _count(self) -> int:
        self.refused += 1
        return self.refused

    def _release(self, one: "NatsSubscription | NatsResponder") -> None:
        if one in self._subscriptions:
            self._subscriptions.remove(one)
            self._check_ready()

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")
