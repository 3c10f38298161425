"""Core NATS: the volatile bus, and replies to requests. Each new connection subscribes again."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.errors import Denied, translated
from agent.adapters.nats.inbox import unsubscribe
from agent.adapters.nats.messages import HEADER_BYTES, Refusals, decoded, encoded, message_id
from agent.adapters.nats.options import NatsOptions
from agent.domain.errors import BusError, StateError, WireError
from agent.domain.events import Event, SyncAsked, SyncProgress
from agent.domain.naming import progress_pattern, subject_matches
from agent.ports import BusState, Clock, Codec, Handler
from agent.ports.dispatch import HandlerQueue, run_handler

MAX_REQUESTS = 16
"""Requests that may wait for their turn; more are not answered."""

_log = structlog.get_logger()


class CoreSubscription:
    """`agent.ports.Subscription`: passes the messages on one subject to `receive`, which fills the queue of a handler.

    `activate` makes it on a connection.
    """

    def __init__(
        self,
        subject: str,
        receive: Callable[[Msg], None],
        queue: HandlerQueue[Any],
        released: Callable[["CoreSubscription"], None],
    ) -> None:
        self.subject, self._on_message, self._queue, self._released = subject, receive, queue, released
        self.client: Client | None = None
        self._active: Subscription | None = None

    async def activate(self, client: Client) -> None:
        self.client, self._active = client, await client.subscribe(self.subject, cb=self._receive)

    async def stop(self) -> None:
        """Unsubscribe, so that the server refuses later requests at once, and cancel the handler."""
        self._released(self)
        if self._active is not None and self.client is not None:
            await unsubscribe(self.client, self._active)
        await self._queue.stop()

    async def _receive(self, message: Msg) -> None:
        self._on_message(message)


@dataclass(frozen=True, slots=True)
class Shared:
    """What the two buses of a connection share.

    `wait_for_connection`: `publish` waits for a connection; otherwise it raises BusError at once if there is none.
    """

    options: NatsOptions
    codec: Codec
    clock: Clock
    connection: NatsConnection
    refusals: Refusals = field(default_factory=Refusals)
    wait_for_connection: bool = False


class ConnectedBus(ABC):
    """What both buses do alike."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._connection, self._codec = shared, shared.connection, shared.codec
        self._listeners: list[Callable[[], None]] = []
        self._since, self._closed = shared.clock.now(), False

    @property
    def state(self) -> BusState:
        """Implement the port. `since` is the time of the last change that was reported."""
        error = self._error()
        detail = str(error or self._shared.options.location)
        return BusState("nats", ready=error is None, detail=detail, since=self._since)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Implement the port."""
        self._listeners.append(listener)

    @abstractmethod
    def _error(self) -> BusError | None:
        """Return the reason why the bus is not ready."""

    def notify(self) -> None:
        """Report a change to the listeners."""
        self._since = self._shared.clock.now()
        for listener in self._listeners:
            listener()

    async def _client_to_publish(self, event: Event, *, may_wait: bool = True) -> Client:
        """Return the connection. Raises BusError; StateError if the bus is closed or the event is local only."""
        self._check_open()
        if isinstance(event, SyncAsked):
            raise StateError(f"{event.type} is a local event: it is not published on the bus")
        if self._shared.wait_for_connection and may_wait:
            return await self._connection.wait()
        return self._connection.client()

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the event bus is closed")


class NatsVolatileBus(ConnectedBus):
    """`agent.ports.VolatileBus` and `agent.ports.Responder` over core NATS.

    It is ready while there is a connection and the server permits its subjects. `state.since` is the time of the last
    change of the connection.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._subscriptions: list[CoreSubscription] = []
        self._published: set[str] = set()
        self._denied: dict[tuple[str, str], str] = {}

    async def restore(self, client: Client) -> None:
        """Make every subscription on a connection, and wait until the server has them. Raises BusError."""
        if client.on_denied != self._denial:
            client.on_denied, self._denied = self._denial, {}
        with translated("subscribing"):
            while missing := [one for one in self._subscriptions if one.client is not client]:
                for one in missing:
                    await one.activate(client)
                await client.confirm_sent()

    async def publish(self, event: Event) -> None:
        """Implement the port. Raises StateError if the bus is closed or the event is local only.

        A ping follows, so that a dead connection is noticed soon.
        """
        disposable = isinstance(event, SyncProgress)
        client = await self._client_to_publish(event, may_wait=not disposable)
        with translated(f"publishing {event.id}"):
            data = encoded(event, self._codec, max_bytes=client.max_payload - HEADER_BYTES)
            if not disposable:
                self._published.add(event.subject.lower())
            await client.publish(event.subject, data, headers={"Nats-Msg-Id": message_id(event)})
        if not disposable:
            self._connection.suspect(client)

    async def subscribe(self, pattern: str, handler: Handler) -> CoreSubscription:
        """Implement the port. If NATS is unreachable, the subscription starts when it can be reached."""
        self._check_open()
        queue = HandlerQueue[Event](pattern, lambda event: run_handler(handler, event, pattern))

        def receive(message: Msg) -> None:
            try:
                queue.put(decoded(message.data, message.subject, self._codec))
            except WireError as error:
                self._shared.refusals.refuse(message, error)

        return await self._subscribe(pattern, receive, queue)

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> CoreSubscription:
        """Implement the port."""
        self._check_open()

        async def reply(request: Msg) -> None:
            if not request.reply:
                return
            response = await answer(request.data)
            try:
                with translated("answering"):
                    await self._connection.client().publish(request.reply, response)
            except BusError as error:
                _log.warning("answer_not_sent", subject=subject, reason=str(error))

        queue = HandlerQueue[Msg](subject, reply, limit=MAX_REQUESTS)
        return await self._subscribe(subject, queue.put, queue)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(one.stop() for one in list(self._subscriptions)))

    async def _subscribe(
        self, subject: str, receive: Callable[[Msg], None], queue: HandlerQueue[Any]
    ) -> CoreSubscription:
        subscription = CoreSubscription(subject, receive, queue, self._release)
        self._subscriptions.append(subscription)
        try:
            if self._connection.is_up:
                with suppress(BusError):  # the connection is lost: the next one gets the subscription
                    await self.restore(self._connection.client())
        except BaseException:
            await subscription.stop()
            raise
        return subscription

    def _error(self) -> BusError | None:
        """Return the reason why events should not be published here now.

        A denied subject of progress does not count: progress may be lost.
        """
        if not self._connection.is_up:
            return self._connection.last_error
        return next((Denied(text) for denied, text in self._denied.items() if self._needs(*denied)), None)

    def _denial(self, kind: str, subject: str, text: str) -> None:
        """Keep the denial of a subject that the bus needs, and report it once.

        Any client can cause others: a request may name any reply subject.
        """
        if self._needs(kind, subject) and (kind, subject) not in self._denied:
            self._denied[kind, subject] = text
            self.notify()

    def _needs(self, kind: str, subject: str) -> bool:
        if kind == "publish":
            return subject in self._published
        wanted = {one.subject.lower() for one in self._subscriptions}
        return subject in wanted and not subject_matches(progress_pattern(), subject)

    def _release(self, subscription: CoreSubscription) -> None:
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]
