"""A subscription over connections that come and go: pulls from its place in the stream, hands over, settles."""

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
"""Before the next try on a connection that lives, where the server would not do it: doubling."""

MOST_WAITING = 100
"""Progress that a slow handler has not come to yet; more is dropped."""

TIDY_SECONDS = 2.0

_log = structlog.get_logger()

RecreateStream = Callable[[Client], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A message that has come: out of the stream (`kept`), or in passing. Anybody may give one in passing a reply."""

    message: Msg
    kept: bool

    @property
    def sequence(self) -> int:
        """Its place in the stream; 0 in passing."""
        return self.message.metadata.sequence.stream if self.kept else 0


_Arrivals = asyncio.Queue[_Arrival | BusError]


class NatsSubscription:
    """`agent.ports.Subscription`. `mend` makes the stream again where it is gone; `released` hears of the end.

    `ready` is set while what is published will be seen; where it is not, `trouble` may say why. `changed` hears of it.
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
        self.trouble: BusError | None = None
        self._changed, self._failures = changed, 0
        self._dispatcher, self._connection, self._stream, self._codec = dispatcher, connection, stream, codec
        self._recreate_stream, self._refused = recreate_stream, refused
        self._next = asyncio.Event()
        self._listens = patterns_meet(consumer.pattern, progress_pattern())
        self.pulls = any(patterns_meet(consumer.pattern, subject) for subject in STREAM_SUBJECTS)
        """Whether it takes events that the stream keeps, not progress alone."""
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
        self._is_ready(False)
        try:
            await self._recreate_stream(client)
        except BusError as error:
            await self._interrupted(client, error)

    async def _interrupted(self, client: Client, error: BusError) -> None:
        """Say why, have the connection looked at, and wait for another one; for a while, where this one lives."""
        self.trouble = error
        self._is_ready(False)
        _log.debug("subscription_interrupted", subscription=self._name, reason=str(error))
        self._connection.suspect(client)
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 20), LAST_PAUSE_SECONDS)
        self._failures += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._connection.wait_beyond(client)

    def _is_ready(self, ready: bool) -> None:
        if ready:
            self.trouble, self._failures = None, 0
            self.ready.set()
        else:
            self.ready.clear()
        self._changed()

    async def _serve(self, client: Client) -> None:
        """Hand over what comes on this connection, until it is lost; what is in hand then is seen to its end."""
        arrivals: _Arrivals = asyncio.Queue()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_send_back, arrivals)
            if self._listens:
                await self._listen(client, arrivals, stack)
            if self.pulls:
                mark = self._stream.mark
                await self._pull(client, mark, arrivals, stack)
                if mark is not None:
                    self._feed(self._watch_stream(mark.created, arrivals), "watch-stream", stack)
            self._feed(self._watch(client, arrivals), "watch", stack)
            self._is_ready(True)
            while True:
                arrival = await arrivals.get()
                if isinstance(arrival, BusError):
                    raise arrival
                await self._hand_over(arrival)
                self._next.set()

    async def _listen(self, client: Client, arrivals: _Arrivals, stack: AsyncExitStack) -> None:
        """Receive progress, which the stream does not keep. A slow handler misses some."""

        async def on_message(message: Msg) -> None:
            if arrivals.qsize() < MOST_WAITING:
                arrivals.put_nowait(_Arrival(message, kept=False))

        with translated("subscribing to progress", client):
            subscription = await client.subscribe(progress_pattern(), cb=on_message)
            await client.confirm_sent()
        stack.push_async_callback(_ignore_errors, client, subscription.unsubscribe)

    async def _pull(self, client: Client, mark: StreamMark | None, arrivals: _Arrivals, stack: AsyncExitStack) -> None:
        """Take in what the stream keeps, one event after the other has been settled."""
        name = await self.consumer.ensure(client, mark)
        stack.push_async_callback(_ignore_errors, client, partial(self.consumer.forget, client, name))
        pull = await Pull.open(client, STREAM, name)
        stack.push_async_callback(_ignore_errors, client, pull.close)
        self._next.set()

        async def feed() -> None:
            try:
                while True:
                    await self._next.wait()
                    self._next.clear()
                    arrivals.put_nowait(_Arrival(await pull.next(), kept=True))
            except BusError as error:
                arrivals.put_nowait(error)

        self._feed(feed(), "pull", stack)

    async def _watch(self, client: Client, arrivals: _Arrivals) -> None:
        await self._connection.wait_beyond(client)
        arrivals.put_nowait(self._connection.trouble)

    async def _watch_stream(self, created: str, arrivals: _Arrivals) -> None:
        """A consumer is gone with its stream, and the server does not say so to all who wait for its next event."""
        await self._stream.wait_beyond(created)
        arrivals.put_nowait(StreamGone("the stream is another one"))

    def _feed(self, work: Coroutine[None, None, None], what: str, stack: AsyncExitStack) -> None:
        task = asyncio.create_task(work, name=f"bus-{self._name}-{what}")

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
        if not arrival.kept:
            await self._dispatcher.hand_over(CoreMessage(event))
            return
        delivery = JetStreamMessage(event, arrival.message)
        await self._dispatcher.hand_over(delivery)
        if delivery.acked:
            self.consumer.seen = max(self.consumer.seen, arrival.sequence)

    async def _refuse(self, arrival: _Arrival, why: str) -> None:
        """Remove a message that is no event of ours for good, count it and log it."""
        if arrival.kept:
            with suppress(BusError), translated("refusing a message"):  # it comes again, and is refused again
                await arrival.message.term()
            self.consumer.seen = max(self.consumer.seen, arrival.sequence)
        count, subject = self._refused(), arrival.message.subject[:200]
        _log.warning("message_refused", subject=subject, sequence=arrival.sequence, reason=why, so_far=count)


async def _send_back(arrivals: _Arrivals) -> None:
    """What has come and was not handed over is for the next of that name, at once."""
    while not arrivals.empty():
        arrival = arrivals.get_nowait()
        if isinstance(arrival, _Arrival) and arrival.kept:
            with suppress(BusError), translated("returning a message"):
                await arrival.message.nak()


async def _ignore_errors(client: Client, work: Callable[[], Awaitable[object]]) -> None:
    """Tidy up at the server, where it still hears us."""
    if not client.lost.is_set():
        with suppress(BusError, TimeoutError), translated("ending a subscription", client):
            async with asyncio.timeout(TIDY_SECONDS):
                await work()
