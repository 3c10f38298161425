"""A subscription that survives reconnections: it pulls events from its consumer, hands them over and settles them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from nats.aio.msg import Msg

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.consumer import DurableConsumer, Pull
from agent.adapters.nats.errors import StreamGone, translated
from agent.adapters.nats.messages import CoreMessage, JetStreamMessage, decoded
from agent.adapters.nats.stream import STREAM, Stream
from agent.domain.errors import BusError, WireError
from agent.domain.naming import STREAM_SUBJECTS, patterns_meet, progress_pattern
from agent.ports import Codec, StreamMark
from agent.ports.dispatch import MessageDispatcher

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 30.0
"""The pause after the server refused an operation on a working connection; it doubles from the first to the last."""

MAX_QUEUED = 100
"""Progress events that may wait for a slow handler; more are dropped."""

CLEANUP_SECONDS = 2.0

_log = structlog.get_logger()

RecreateStream = Callable[[Client], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A received message, from the stream (`stored`) or from core NATS.

    A reply subject does not distinguish them: any client may set one on a core NATS message.
    """

    message: Msg
    stored: bool

    @property
    def sequence(self) -> int:
        """The sequence in the stream; 0 for core NATS."""
        return self.message.metadata.sequence.stream if self.stored else 0


_Arrivals = asyncio.Queue[_Arrival | BusError]


class NatsSubscription:
    """`agent.ports.Subscription`. `recreate_stream` creates a deleted stream again; `released` is called at the end.

    `ready` is set while the subscription receives what is published; otherwise `last_error` may have the reason.
    `changed` is called when either changes.
    """

    def __init__(
        self,
        consumer: DurableConsumer,
        dispatcher: MessageDispatcher,
        *,
        connection: NatsConnection,
        stream: Stream,
        codec: Codec,
        recreate_stream: RecreateStream,
        released: Callable[["NatsSubscription"], None],
        refused: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self.consumer = consumer
        self.ready = asyncio.Event()
        self.last_error: BusError | None = None
        self._changed, self._failures = changed, 0
        self._dispatcher, self._connection, self._stream, self._codec = dispatcher, connection, stream, codec
        self._recreate_stream, self._refused = recreate_stream, refused
        self._next = asyncio.Event()
        self._listens = patterns_meet(consumer.pattern, progress_pattern())
        self.pulls = any(patterns_meet(consumer.pattern, subject) for subject in STREAM_SUBJECTS)
        """Whether it receives events that the stream stores, not only progress."""
        self._name = consumer.durable or consumer.pattern
        self.worker = asyncio.create_task(self._run(), name=f"bus-{self._name}")
        self.worker.add_done_callback(lambda _: released(self))

    async def stop(self) -> None:
        self.worker.cancel()
        await asyncio.wait({self.worker})

    async def _run(self) -> None:
        while True:
            client = await self._connection.wait()
            try:
                await self._serve(client)
            except StreamGone as error:
                _log.info("subscription_recreated", subscription=self._name, reason=str(error))
                await self._recreated(client)
            except BusError as error:
                await self._interrupted(client, error)

    async def _recreated(self, client: Client) -> None:
        self._set_ready(False)
        try:
            await self._recreate_stream(client)
        except BusError as error:
            await self._interrupted(client, error)

    async def _interrupted(self, client: Client, error: BusError) -> None:
        """Keep the error, have the connection checked, and wait for another connection or for the pause."""
        self.last_error = error
        self._set_ready(False)
        _log.debug("subscription_interrupted", subscription=self._name, reason=str(error))
        self._connection.suspect(client)
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 20), LAST_PAUSE_SECONDS)
        self._failures += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._connection.wait_until_lost(client)

    def _set_ready(self, ready: bool) -> None:
        if ready:
            self.last_error, self._failures = None, 0
            self.ready.set()
        else:
            self.ready.clear()
        self._changed()

    async def _serve(self, client: Client) -> None:
        """Hand over the messages of this connection until it is lost; the handler of the last one is awaited."""
        arrivals: _Arrivals = asyncio.Queue()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_return_unhandled, arrivals)
            if self._listens:
                await self._listen(client, arrivals, stack)
            if self.pulls:
                mark = self._stream.mark
                await self._pull(client, mark, arrivals, stack)
                if mark is not None:
                    self._start_task(self._watch_stream(mark.created, arrivals), "watch-stream", stack)
            self._start_task(self._watch(client, arrivals), "watch", stack)
            self._set_ready(True)
            while True:
                arrival = await arrivals.get()
                if isinstance(arrival, BusError):
                    raise arrival
                await self._hand_over(arrival)
                self._next.set()

    async def _listen(self, client: Client, arrivals: _Arrivals, stack: AsyncExitStack) -> None:
        """Receive progress, which the stream does not store. A slow handler misses some."""

        async def on_message(message: Msg) -> None:
            if arrivals.qsize() < MAX_QUEUED:
                arrivals.put_nowait(_Arrival(message, stored=False))

        with translated("subscribing to progress", client):
            subscription = await client.subscribe(progress_pattern(), cb=on_message)
            await client.confirm_sent()
        stack.push_async_callback(_clean_up, client, subscription.unsubscribe)

    async def _pull(self, client: Client, mark: StreamMark | None, arrivals: _Arrivals, stack: AsyncExitStack) -> None:
        """Pull events of the stream, each after the previous one has been settled."""
        name = await self.consumer.ensure(client, mark)
        stack.push_async_callback(_clean_up, client, partial(self.consumer.forget, client, name))
        pull = await Pull.open(client, STREAM, name)
        stack.push_async_callback(_clean_up, client, pull.close)
        self._next.set()

        async def pull_events() -> None:
            try:
                while True:
                    await self._next.wait()
                    self._next.clear()
                    arrivals.put_nowait(_Arrival(await pull.next(), stored=True))
            except BusError as error:
                arrivals.put_nowait(error)

        self._start_task(pull_events(), "pull", stack)

    async def _watch(self, client: Client, arrivals: _Arrivals) -> None:
        await self._connection.wait_until_lost(client)
        arrivals.put_nowait(self._connection.last_error)

    async def _watch_stream(self, created: str, arrivals: _Arrivals) -> None:
        """Detect a replaced stream: the server does not notify every pull request when it deletes the consumer."""
        await self._stream.wait_until_replaced(created)
        arrivals.put_nowait(StreamGone("the stream was replaced"))

    def _start_task(self, work: Coroutine[None, None, None], name: str, stack: AsyncExitStack) -> None:
        task = asyncio.create_task(work, name=f"bus-{self._name}-{name}")

        async def end() -> None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

        stack.push_async_callback(end)

    async def _hand_over(self, arrival: _Arrival) -> None:
        try:
            event = decoded(arrival.message, self._codec)
        except WireError as error:
            await self._refuse(arrival, str(error))
            return
        if not arrival.stored:
            await self._dispatcher.dispatch(CoreMessage(event))
            return
        delivery = JetStreamMessage(event, arrival.message)
        await self._dispatcher.dispatch(delivery)
        if delivery.acked:
            self.consumer.seen = max(self.consumer.seen, arrival.sequence)

    async def _refuse(self, arrival: _Arrival, reason: str) -> None:
        """Remove a message that is not a valid event from the consumer, count it and log it."""
        if arrival.stored:
            with suppress(BusError), translated("refusing a message"):  # after an error, it is redelivered and refused
                await arrival.message.term()
            self.consumer.seen = max(self.consumer.seen, arrival.sequence)
        count, subject = self._refused(), arrival.message.subject[:200]
        _log.warning("message_refused", subject=subject, sequence=arrival.sequence, reason=reason, so_far=count)


async def _return_unhandled(arrivals: _Arrivals) -> None:
    """Nak received messages that were not handed over, so that the next subscription gets them at once."""
    while not arrivals.empty():
        arrival = arrivals.get_nowait()
        if isinstance(arrival, _Arrival) and arrival.stored:
            with suppress(BusError), translated("returning a message"):
                await arrival.message.nak()


async def _clean_up(client: Client, work: Callable[[], Awaitable[object]]) -> None:
    """Run the clean-up if the connection is up, with a time limit; ignore its errors."""
    if not client.lost.is_set():
        with suppress(BusError, TimeoutError), translated("cleaning up a subscription", client):
            async with asyncio.timeout(CLEANUP_SECONDS):
                await work()
