"""The event bus on NATS JetStream: what the agents, Session-Buddy, Akosha's side and anybody else tell each other.

Events are kept in the stream AKOSHA_SYNC; a durable name is a consumer in it. Progress passes by on plain NATS.
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

FIRST_TRY_SECONDS = 1.0
"""How long opening the bus waits for NATS before it goes on without."""

HEADER_BYTES = 1024
"""Room for the headers in what the server takes of a message."""

_log = structlog.get_logger()


class NatsBus:
    """`agent.ports.EventBus`, and `agent.ports.Responder`. Made by `open`, ended by `aclose`.

    `patient`: publishing waits until NATS is there; else it raises BusError at once.
    """

    def __init__(self, options: NatsOptions, codec: Codec, clock: Clock, *, patient: bool) -> None:
        self._options, self._codec, self._clock, self._patient = options, codec, clock, patient
        self._stream = Stream(options.limits)
        self._connection = NatsConnection(options, clock, prepare=self._prepare, changed=self._connection_changed)
        self._recreating = asyncio.Lock()
        self._subscriptions: list[NatsSubscription | NatsResponder] = []
        self._listeners: list[Callable[[], None]] = []
        self._closed = False
        self._was_ready, self._since = False, clock.now()
        self.refused = 0
        """How many messages were taken out because they are no events of ours."""

    @classmethod
    async def open(cls, options: NatsOptions, codec: Codec, *, clock: Clock, patient: bool = False) -> Self:
        """Begin to connect; return when that has come to an end, or after a second. Never raises for want of NATS."""
        bus = cls.begin(options, codec, clock=clock, patient=patient)
        await bus.first_try()
        return bus

    @classmethod
    def begin(cls, options: NatsOptions, codec: Codec, *, clock: Clock, patient: bool = False) -> Self:
        """Begin to connect, and wait for nothing."""
        bus = cls(options, codec, clock, patient=patient)
        bus.start()
        return bus

    def start(self) -> None:
        """Begin to connect, in the background, for as long as the bus is open."""
        self._connection.start()

    async def first_try(self) -> None:
        """Return when the first attempt to connect has come to an end, or after a second."""
        await self._connection.tried(FIRST_TRY_SECONDS)

    @property
    def state(self) -> BusState:
        if self._is_ready:
            return BusState("nats", ready=True, detail=self._options.location, since=self._since)
        troubles = (one.trouble for one in self._subscriptions if isinstance(one, NatsSubscription))
        trouble = next(filter(None, troubles), None) if self._connection.is_up else self._connection.trouble
        detail = str(trouble or f"subscribing at {self._options.location}")
        return BusState("nats", ready=False, detail=detail, since=self._since)

    @property
    def _is_ready(self) -> bool:
        """Connected, and every subscription sees what is published: else events would go where nobody hears them.

        Those to progress alone do not count: progress may be lost, and each command that shows it makes one.
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
        """As `Reconnectable` says; a call that awaits an answer fails as transient."""
        self._connection.renew()

    async def publish(self, event: Event) -> None:
        """As the port says: an event that is kept is in the stream when this returns, confirmed by the server.

        Raises WireError for what cannot be written, StateError on a closed bus and for what stays on the machine.
        """
        self._check_open()
        if isinstance(event, SyncAsked):
            raise StateError(f"{event.type} stays on its machine: it is not for the bus")
        patient = self._patient and not isinstance(event, SyncProgress)
        client = await self._connection.wait() if patient else self._connection.client()
        with translated("reading what the server takes", client):
            most = client.max_payload - HEADER_BYTES
        data = encoded(event, self._codec, most=most)
        if isinstance(event, SyncProgress):
            with translated("telling progress", client):
                await client.publish(event.subject, data)
            return
        try:
            await self._put(client, event, data)
        except BusError as error:
            # Where somebody listens on plain NATS, a stream that is gone is a publish without an answer.
            if not (isinstance(error, StreamGone) or await self._is_gone(client)):
                raise
            await self._recreate_stream(client)
            await self._put(client, event, data)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> NatsSubscription:
        """As the port says; where NATS is out of reach, it begins when NATS is there.

        Raises StateError where the durable name is in use in this process.
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
        answering = NatsResponder(subject, answer, connection=self._connection)
        self._subscriptions.append(answering)
        await self._wait_started(answering)
        return answering

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
                f"publishing {event.id}: the stream {stream} took it, not {STREAM}",
                hint="another stream on this server has our subjects",
                transient=True,
            )
        self._stream.advance(sequence)

    async def _is_gone(self, client: Client) -> bool:
        """Say whether the stream is known not to be there."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                return client.is_connected and not await self._stream.exists(client, self._options.patience.connect)
        except BusError:
            return False

    async def _prepare(self, client: Client) -> None:
        """Make the stream where there is none. The listeners hear where it is another one than before, or was cut."""
        before = self._stream.mark
        with translated(f"preparing the stream {STREAM}", client):
            await self._stream.ensure(client, self._options.patience.connect)
        after = self._stream.mark
        if before is None or (after is not None and after.has_lost(before)):
            self._notify()

    async def _recreate_stream(self, client: Client) -> None:
        """Make the stream again that has gone away under a living connection."""
        async with self._recreating:
            await self._prepare(client)

    async def _wait_started(self, one: "NatsSubscription | NatsResponder") -> None:
        """Where NATS is there: return when what is published from now on will be seen."""
        if self._connection.is_up:
            ready = asyncio.create_task(one.ready.wait(), name="bus-begun")
            try:
                ends: set[asyncio.Task[object]] = {ready, one.worker}
                seconds = self._options.patience.connect
                await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()

    def _connection_changed(self) -> None:
        """A connection was made or lost: what waits for one is worth a try, also before every subscription is ready."""
        self._check_ready()
        self._notify()

    def _check_ready(self) -> None:
        """Tell the listeners where the bus has become ready, or is no longer."""
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
