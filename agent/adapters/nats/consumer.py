"""A durable consumer: the server keeps its position, and its messages are pulled one by one.

A request for the next message waits at the server for 30 s. If nothing answers it, it was lost with a server or its
leader, and it is sent again.

The server may send a message to a connection that has died unnoticed. It delivers the message again after the ack wait,
which is short therefore: the client reports progress while a handler works.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, Header

from agent.adapters.nats.client import Client
from agent.adapters.nats.core import Shared
from agent.adapters.nats.errors import Denied, StreamGone, translated
from agent.adapters.nats.inbox import Inbox, open_inbox
from agent.adapters.nats.messages import decoded
from agent.adapters.nats.stream import STREAM
from agent.domain.errors import BusError, WireError
from agent.domain.events import Event
from agent.ports import Handler
from agent.ports.dispatch import end_task, redelivery_delay, run_handler

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 30.0
"""The pause after the server refused an operation on a working connection; it doubles from the first to the last."""

ACK_SECONDS = 5.0

PULL_SECONDS = 30.0
"""How long a request for the next event waits at the server."""

GRACE_SECONDS = 5.0
"""How much later the server's answer may arrive. Then the request is considered lost."""

_NANOSECONDS = 10**9

_ESSENTIAL = frozenset({"filter_subject", "ack_policy", "deliver_subject"})
"""The settings of a consumer without which it cannot be used."""

_NOTHING, _EXPIRED, _CONFLICT = "404", "408", "409"

_OPERATION = "requesting the next event"

_log = structlog.get_logger()


class NatsConsumer:
    """`agent.ports.Subscription` to stored events, which survives reconnections.

    `check_stream` starts to create a deleted stream again, and `stream_examined` waits for that. `released` is called
    at the end. `last_error` is the reason why no events are received now; `changed` is called when it changes.
    """

    def __init__(
        self,
        pattern: str,
        durable: str,
        handler: Handler,
        *,
        shared: Shared,
        check_stream: Callable[[Client], None],
        stream_examined: Callable[[], Awaitable[None]],
        released: Callable[["NatsConsumer"], None],
        changed: Callable[[], None],
    ) -> None:
        self.durable, self.last_error, self.started = durable, None, asyncio.Event()
        self._pattern, self._handler, self._codec, self._refusals = pattern, handler, shared.codec, shared.refusals
        self._options, self._connection = shared.options, shared.connection
        self._check_stream, self._stream_examined = check_stream, stream_examined
        self._changed, self._pauses, self._failing, self._failures = changed, 0, "", 0
        self._worker = asyncio.create_task(self._run(), name=f"bus-{durable}")
        self._worker.add_done_callback(lambda _: released(self))

    last_error: BusError | None
    started: asyncio.Event
    """Set after the first attempt to create the consumer, whether it succeeded or not."""

    async def stop(self) -> None:
        if not self._worker.done():
            await end_task(self._worker)

    async def _run(self) -> None:
        while True:
            client = await self._connection.wait()
            try:
                await self._serve(client)
            except BusError as error:
                await self._interrupted(client, error)

    async def _interrupted(self, client: Client, error: BusError) -> None:
        """Keep the error, have stream and connection checked, and wait for another connection or for the pause."""
        self._set_error(error)
        _log.debug("subscription_interrupted", subscription=self.durable, reason=str(error))
        if isinstance(error, StreamGone):
            self._check_stream(client)
        self._connection.suspect(client)
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._pauses, 20), LAST_PAUSE_SECONDS)
        self._pauses += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._connection.wait_until_lost(client)

    def _set_error(self, error: BusError | None) -> None:
        self.last_error = error
        self.started.set()
        self._changed()

    async def _serve(self, client: Client) -> None:
        """Hand over messages until this connection is lost. Raises StreamGone, BusError."""
        await self._stream_examined()
        await self._ensure(client)
        async with open_inbox(client) as inbox:
            await self._request(inbox)
            with translated(_OPERATION):
                await client.confirm_sent()
                inbox.check()
            self._pauses = 0
            self._set_error(None)
            while True:
                if (message := await self._answer(inbox)) is not None:
                    await self._hand_over(message)
                await self._request(inbox)

    async def _request(self, inbox: Inbox) -> None:
        request = json.dumps({"batch": 1, "expires": int(PULL_SECONDS * _NANOSECONDS)}).encode()
        with translated(_OPERATION):
            await inbox.request(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self.durable}", request)

    async def _answer(self, inbox: Inbox) -> Msg | None:
        """Return the next message, None if none has come in `PULL_SECONDS`.

        Raises StreamGone, Denied; BusError if there is no answer.
        """
        with translated(_OPERATION):
            answer = await inbox.next(PULL_SECONDS + GRACE_SECONDS)
            if answer.reply:  # an event, which may have a header `Status`, too
                _ = answer.metadata  # raises if the reply subject is not one of JetStream
                return answer
        headers = answer.headers or {}
        status, description = headers.get("Status", ""), str(headers.get(Header.DESCRIPTION, ""))
        if status in (_NOTHING, _EXPIRED):
            return None
        if status == _CONFLICT and "deleted" not in description.lower():
            raise BusError(f"the server ended the request for the next event: {description}", transient=True)
        raise StreamGone("the consumer does not exist")

    async def _ensure(self, client: Client) -> None:
        """Create the consumer if necessary, at the oldest event; an existing one keeps its position.

        One with the same filter that acknowledges each event is used as it is if the server does not permit to change
        it: then an administrator made it.
        """
        jetstream = client.jetstream(timeout=self._options.patience.connect)
        found: ConsumerInfo | None = None
        with suppress(StreamGone), translated(f"looking for the consumer {self.durable}"):
            found = await jetstream.consumer_info(STREAM, self.durable)
        wanted = ConsumerConfig(
            name=self.durable,
            durable_name=self.durable,
            filter_subject=self._pattern,
            deliver_policy=(found and found.config.deliver_policy) or DeliverPolicy.ALL,
            opt_start_seq=found.config.opt_start_seq if found else None,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._options.patience.ack_wait,
            max_ack_pending=1,
            max_deliver=-1,
            inactive_threshold=self._options.limits.inactive,
        )
        if found is not None and not _differences(found.config, wanted):
            return
        try:
            with translated(f"creating the consumer {self.durable}"):
                await jetstream.add_consumer(STREAM, wanted)
        except Denied:
            if found is None or _differences(found.config, wanted) & _ESSENTIAL:
                raise

    async def _hand_over(self, message: Msg) -> None:
        """Run the handler, then ack; after an error, nak. A message that is not a valid event is removed."""
        try:
            event = decoded(message.data, message.subject, self._codec)
        except WireError as error:
            self._refusals.refuse(message, error, sequence=message.metadata.sequence.stream)
            await self._send(message, b"+TERM")
            return
        if await self._handled(event, message):
            self._failures = 0
            await self._ack(event, message)
            return
        self._failures = self._failures + 1 if event.id == self._failing else 1
        self._failing = event.id
        await self._nak(message, redelivery_delay(self._failures))

    async def _handled(self, event: Event, message: Msg) -> bool:
        """Run the handler and return whether it succeeded. Meanwhile the server is notified of its progress."""
        work = asyncio.create_task(run_handler(self._handler, event, self.durable), name=f"bus-{self.durable}-handler")
        try:
            while not (await asyncio.wait({work}, timeout=self._options.patience.ack_wait / 3))[0]:
                await self._send(message, b"+WPI")
        except asyncio.CancelledError:
            await end_task(work)
            await self._nak(message, 0.0)
            raise
        return work.result()

    async def _ack(self, event: Event, message: Msg) -> None:
        """Acknowledge, and wait for the server's confirmation. The connection may be another one by now."""
        try:
            with translated(f"ack of {event.id}"):
                async with asyncio.timeout(ACK_SECONDS):
                    client = await self._connection.wait()
                    await client.request(message.reply, b"+ACK", timeout=ACK_SECONDS)
        except BusError as error:
            _log.debug("ack_failed", id=event.id, error=str(error), next_step="redelivery")

    async def _nak(self, message: Msg, delay: float) -> None:
        await self._send(message, b'-NAK {"delay": %d}' % int(delay * _NANOSECONDS) if delay else b"-NAK")

    async def _send(self, message: Msg, answer: bytes) -> None:
        """Send an answer that needs no confirmation: if it is lost, the message is redelivered after the ack wait."""
        with suppress(BusError), translated("answering an event"):
            await self._connection.client().publish(message.reply, answer)


def _differences(found: ConsumerConfig, wanted: ConsumerConfig) -> set[str]:
    """Return the names of the settings in which a consumer differs from the wanted one."""
    names = (*_ESSENTIAL, "ack_wait", "max_ack_pending", "max_deliver", "inactive_threshold")
    return {name for name in names if getattr(found, name) != getattr(wanted, name)}
