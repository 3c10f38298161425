"""Core NATS: plain subscriptions, which each new connection gets again, the volatile bus, and replies to requests."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.errors import Denied, translated
from agent.adapters.nats.messages import HEADER_BYTES, Refusals, decoded, encoded, message_id
from agent.adapters.nats.options import NatsOptions
from agent.domain.errors import BusError, StateError, WireError
from agent.domain.events import Event, SyncAsked, SyncProgress
from agent.domain.naming import progress_pattern, subject_matches
from agent.ports import BusState, Clock, Codec, Handler
from agent.ports.dispatch import EventQueue, end_task

MAX_REQUESTS = 16
"""Requests that may wait for their turn; more are not answered."""

_log = structlog.get_logger()

OnMessage = Callable[[Msg], None]


class CoreSubscription:
    """A plain subscription to one subject, made again by `Subscriptions` on each new connection."""

    def __init__(self, subject: str, on_message: OnMessage) -> None:
        self.subject, self.client = subject, None
        self._on_message = on_message
        self._active: Subscription | None = None

    client: Client | None
    """The connection that it was made on."""

    async def activate(self, client: Client) -> None:
        self.client = client
        self._active = await client.subscribe(self.subject, cb=self._receive)

    async def unsubscribe(self) -> None:
        """End it, so that the server refuses later requests at once."""
        if self._active is not None and self.client is not None and not self.client.lost.is_set():
            with suppress(BusError), translated("unsubscribing"):
                await self._active.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        self._on_message(message)


class Subscriptions:
    """The plain subscriptions of a bus."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._all: list[CoreSubscription] = []

    async def add(self, subject: str, on_message: OnMessage) -> CoreSubscription:
        """Subscribe, on the connection there is and on each later one."""
        subscription = CoreSubscription(subject, on_message)
        self._all.append(subscription)
        if self._connection.is_up:
            with suppress(BusError):  # the connection is lost: the next one gets the subscription
                await self.restore(self._connection.client())
        return subscription

    async def remove(self, subscription: CoreSubscription) -> None:
        """End a subscription."""
        if subscription in self._all:
            self._all.remove(subscription)
            await subscription.unsubscribe()

    async def restore(self, client: Client) -> None:
        """Make every subscription on a connection, and wait until the server has them. Raises BusError."""
        with translated("subscribing"):
            while missing := [one for one in self._all if one.client is not client]:
                for one in missing:
                    await one.activate(client)
                await client.confirm_sent()

    def denied(self, client: Client) -> str:
        """Return the server's message about a subscription that it refused, "" if it refused none.

        Progress does not count: it may be lost, and each command that shows it subscribes.
        """
        subjects = (one.subject for one in self._all if one.subject != progress_pattern())
        return next((text for subject in subjects if (text := client.denied.get(subject.lower()))), "")


class NatsVolatileBus:
    """`agent.ports.VolatileBus` and `agent.ports.Responder` over core NATS.

    It is ready while there is a connection and the server permits its subjects. `wait_for_connection`: `publish` waits
    for a connection; otherwise it raises BusError at once if there is none.
    """

    def __init__(
        self,
        options: NatsOptions,
        codec: Codec,
        clock: Clock,
        connection: NatsConnection,
        refusals: Refusals,
        *,
        wait_for_connection: bool,
    ) -> None:
        self._location, self._codec, self._clock, self._connection = options.location, codec, clock, connection
        self._refusals, self._wait_for_connection = refusals, wait_for_connection
        self._subscriptions = Subscriptions(connection)
        self._running: list[_NatsSubscription | _Responder] = []
        self._listeners: list[Callable[[], None]] = []
        self._since, self._closed = clock.now(), False

    @property
    def state(self) -> BusState:
        """Implement the port. `since` is the time of the last change of the connection."""
        error = self._error()
        return BusState("nats", ready=error is None, detail=str(error or self._location), since=self._since)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    async def restore(self, client: Client) -> None:
        """Make the subscriptions on a new connection, before it is used. Raises BusError."""
        client.on_denied = self.changed
        await self._subscriptions.restore(client)

    def changed(self) -> None:
        """Notify the listeners: the connection is made or lost, or the server has denied a subject."""
        self._since = self._clock.now()
        for listener in self._listeners:
            listener()

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed or the event is local only.

        A ping follows, so that a dead connection is noticed soon.
        """
        self._check_open()
        if isinstance(event, SyncAsked):
            raise StateError(f"{event.type} is a local event: it is not published on the bus")
        disposable = isinstance(event, SyncProgress)
        wait = self._wait_for_connection and not disposable
        client = await self._connection.wait() if wait else self._connection.client()
        with translated(f"publishing {event.id}"):
            data = encoded(event, self._codec, max_bytes=client.max_payload - HEADER_BYTES)
            await client.publish(event.subject, data, headers={"Nats-Msg-Id": message_id(event)})
        if not disposable:
            self._connection.suspect(client)

    async def subscribe(self, pattern: str, handler: Handler) -> "_NatsSubscription":
        """Implement the port. If NATS is unreachable, the subscription starts when it can be reached."""
        self._check_open()
        queue = EventQueue(pattern, handler, released=lambda _: None)

        def receive(message: Msg) -> None:
            try:
                queue.put(decoded(message, self._codec))
            except WireError as error:
                self._refusals.refuse(message, error)

        subscription = _NatsSubscription(await self._subscriptions.add(pattern, receive), queue, self._release)
        self._running.append(subscription)
        return subscription

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> "_Responder":
        self._check_open()
        responder = _Responder(subject, answer, self._connection, self._release)
        self._running.append(responder)
        responder.subscription = await self._subscriptions.add(subject, responder.receive)
        return responder

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(one.stop() for one in list(self._running)))

    def _error(self) -> BusError | None:
        """Return the reason why events should not be published here now."""
        if not self._connection.is_up:
            return self._connection.last_error
        client = self._connection.client()
        if denied := self._subscriptions.denied(client):
            return Denied(denied)
        for subject, text in client.denied.items():
            if text.lower().startswith("permissions violation for publish") and not _is_progress(subject):
                return Denied(text)
        return None

    async def _release(self, one: "_NatsSubscription | _Responder") -> None:
        if one in self._running:
            self._running.remove(one)
        if one.subscription is not None:
            await self._subscriptions.remove(one.subscription)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")


def _is_progress(subject: str) -> bool:
    return subject_matches(progress_pattern(), subject)


class _NatsSubscription:
    """A subscription of the volatile bus: `agent.ports.Subscription`."""

    def __init__(
        self,
        subscription: CoreSubscription,
        queue: EventQueue,
        release: Callable[["_NatsSubscription"], Awaitable[None]],
    ) -> None:
        self.subscription, self._queue, self._release = subscription, queue, release

    async def stop(self) -> None:
        await self._release(self)
        await self._queue.stop()


class _Responder:
    """Answers the requests on one subject, one at a time: `agent.ports.Subscription`."""

    def __init__(
        self,
        subject: str,
        answer: Callable[[bytes], Awaitable[bytes]],
        connection: NatsConnection,
        release: Callable[["_Responder"], Awaitable[None]],
    ) -> None:
        self._subject, self._answer, self._connection, self._release = subject, answer, connection, release
        self._requests: asyncio.Queue[Msg] = asyncio.Queue(MAX_REQUESTS)
        self.subscription: CoreSubscription | None = None
        self._worker = asyncio.create_task(self._run(), name=f"answer-{subject}")

    def receive(self, message: Msg) -> None:
        if message.reply and not self._requests.full():
            self._requests.put_nowait(message)

    async def stop(self) -> None:
        await self._release(self)
        await end_task(self._worker)

    async def _run(self) -> None:
        while True:
            request = await self._requests.get()
            answer = await self._answer(request.data)
            try:
                with translated("answering"):
                    await self._connection.client().publish(request.reply, answer)
            except BusError as error:
                _log.warning("answer_not_sent", subject=self._subject, reason=str(error))
