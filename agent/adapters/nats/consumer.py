"""A consumer in the stream, which keeps the position of one subscription. Messages are pulled one by one.

A request for the next message waits at the server for two minutes; meanwhile the server sends a heartbeat every 15 s.
If two heartbeats are missed, the request was lost with a server or its leader, and it is sent again.
"""

import json
from dataclasses import dataclass
from typing import Self

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, Header
from nats.nuid import NUID

from agent.adapters.nats.client import Client
from agent.adapters.nats.errors import StreamGone, translated
from agent.adapters.nats.options import NatsOptions
from agent.adapters.nats.stream import STREAM
from agent.domain.errors import BusError
from agent.ports import StreamMark

EPHEMERAL_INACTIVE_SECONDS = 300.0
"""How long the server keeps the consumer of a disconnected subscription that has no durable name."""

EXPIRES_SECONDS = 120.0
HEARTBEAT_SECONDS = 15.0
MISSED_SECONDS = HEARTBEAT_SECONDS * 2 + 5.0

_NANOSECONDS = 10**9
_REQUEST = json.dumps(
    {
        "batch": 1,
        "expires": int(EXPIRES_SECONDS * _NANOSECONDS),
        "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
    }
).encode()


@dataclass(slots=True)
class DurableConsumer:
    """The consumer `durable`, whose position the server keeps; without a name, an ephemeral consumer.

    An ephemeral consumer starts with the next event published. If it must be created again, because the server deleted
    it or the stream was replaced, it continues after `seen`, the last sequence handled.
    """

    pattern: str
    durable: str | None
    options: NatsOptions
    seen: int = 0
    _origin: str = ""

    async def ensure(self, client: Client, mark: StreamMark | None) -> str:
        """Create the consumer if necessary and return its name; no message of it is left unacknowledged.

        `mark` distinguishes the current stream from an earlier one, or an earlier state, of the same name.
        Raises BusError, StreamGone.
        """
        with translated(f"creating the consumer of {self.pattern}", client):
            jetstream = client.jetstream(timeout=self.options.patience.connect)
            if self.durable is None:
                return await self._ephemeral(jetstream, mark)
            return await self._durable(client, jetstream, self.durable)

    async def forget(self, client: Client, name: str) -> None:
        """Delete an ephemeral consumer whose subscription has ended."""
        if self.durable is None and not client.is_closed:
            with translated("ending a subscription", client):
                jetstream = client.jetstream(timeout=self.options.patience.connect)
                await jetstream.delete_consumer(STREAM, name)

    async def _durable(self, client: Client, jetstream: JetStreamContext, name: str) -> str:
        try:
            with translated("looking for a consumer", client):
                found: ConsumerInfo | None = await jetstream.consumer_info(STREAM, name)
        except StreamGone:
            found = None
        if found and self.options.own_durables and (found.num_ack_pending or found.num_waiting):
            # A killed process or a lost connection left these messages unacknowledged: the server would redeliver them
            # only after the ack wait, a minute. And if the server has not noticed that a connection died, it would send
            # the next event to the request that still waits on that connection.
            await jetstream.delete_consumer(STREAM, name)
            floor = found.ack_floor.stream_seq if found.ack_floor else 0
            await self._add(jetstream, name, DeliverPolicy.BY_START_SEQUENCE, floor + 1)
        elif found:
            config = found.config
            await self._add(jetstream, name, config.deliver_policy or DeliverPolicy.ALL, config.opt_start_seq)
        else:
            await self._add(jetstream, name, DeliverPolicy.ALL, None)
        return name

    async def _ephemeral(self, jetstream: JetStreamContext, mark: StreamMark | None) -> str:
        name, created = f"passing-{NUID().next().decode()}", mark.created if mark else ""
        if not self._origin:
            info = await self._add(jetstream, name, DeliverPolicy.NEW, None)
            self.seen = info.delivered.stream_seq if info.delivered else 0
        elif mark is None or (created == self._origin and mark.sequence >= self.seen):
            await self._add(jetstream, name, DeliverPolicy.BY_START_SEQUENCE, self.seen + 1)
        else:
            self.seen = 0
            await self._add(jetstream, name, DeliverPolicy.ALL, None)
        self._origin = created
        return name

    async def _add(
        self, jetstream: JetStreamContext, name: str, policy: DeliverPolicy, sequence: int | None
    ) -> ConsumerInfo:
        return await jetstream.add_consumer(
            STREAM,
            ConsumerConfig(
                name=name,
                durable_name=self.durable,
                filter_subject=self.pattern,
                deliver_policy=policy,
                opt_start_seq=sequence,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self.options.patience.ack_wait,
                max_ack_pending=1,
                max_deliver=-1,
                inactive_threshold=EPHEMERAL_INACTIVE_SECONDS if self.durable is None else self.options.limits.inactive,
            ),
        )


_HEARTBEAT, _NOTHING, _EXPIRED, _CONFLICT = "100", "404", "408", "409"


class Pull:
    """Pulls the messages of a consumer one by one: `open`, then `next` for each message, then `close`."""

    def __init__(self, client: Client, subject: str, inbox: str, answers: Subscription) -> None:
        self._client, self._subject, self._inbox, self._answers = client, subject, inbox, answers
        self._requested = False

    @classmethod
    async def open(cls, client: Client, stream: str, consumer: str) -> Self:
        with translated("subscribing to an inbox", client):
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
        return cls(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", inbox, answers)

    async def close(self) -> None:
        if not self._client.is_closed:
            with translated("unsubscribing from an inbox", self._client):
                await self._answers.unsubscribe()

    async def next(self) -> Msg:
        """Wait for the next message, without a limit. Raises StreamGone; BusError if the server does not answer."""
        while True:
            with translated("requesting the next event", self._client):
                if not self._requested:
                    await self._client.publish(self._subject, _REQUEST, reply=self._inbox)
                    self._requested = True
                try:
                    message = await self._answers.next_msg(timeout=MISSED_SECONDS)
                except NatsTimeout:
                    self._requested = False
                    raise
                if message.reply:  # an event, which may have a header `Status`, too
                    self._requested = False
                    _ = message.metadata  # raises if the reply subject is not one of JetStream
                    return message
            headers = message.headers or {}
            status = headers.get("Status", "")
            if status == _HEARTBEAT:
                continue
            self._requested = False
            if status not in (_EXPIRED, _NOTHING):
                self._raise_for_status(status, str(headers.get(Header.DESCRIPTION, "")))

    @staticmethod
    def _raise_for_status(status: str, description: str) -> None:
        if status == _CONFLICT and "deleted" not in description.lower():
            raise BusError(f"the server ended the request for the next event: {description}", transient=True)
        raise StreamGone("the consumer does not exist")
