"""Pulling one message at a time from a consumer, and noticing when nobody is there any more to ask.

A request for the next message waits at the server for two minutes; while it waits, the server sends a heartbeat
every 15 s. Two that stay out mean that the request was lost (with a server, or its leader), and it is made again.
"""

import json
from typing import Self

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import Header

from agent.adapters.nats.client import Client
from agent.adapters.nats.errors import StreamGone, translated
from agent.domain.errors import BusError

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

_HEARTBEAT, _NOTHING, _EXPIRED, _CONFLICT = "100", "404", "408", "409"


class Pull:
    """A place in a stream, asked for what comes next. `open` it, `next` it, `close` it."""

    def __init__(self, client: Client, subject: str, inbox: str, answers: Subscription) -> None:
        self._client, self._subject, self._inbox, self._answers = client, subject, inbox, answers
        self._asked = False

    @classmethod
    async def open(cls, client: Client, stream: str, consumer: str) -> Self:
        with translated("subscribing to an inbox", client):
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
        return cls(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", inbox, answers)

    async def close(self) -> None:
        if not self._client.is_closed:
            with translated("leaving an inbox", self._client):
                await self._answers.unsubscribe()

    async def next(self) -> Msg:
        """Return the next message, however long that takes. Raises StreamGone, and BusError where nobody answers."""
        while True:
            with translated("asking for the next event", self._client):
                if not self._asked:
                    await self._client.publish(self._subject, _REQUEST, reply=self._inbox)
                    self._asked = True
                try:
                    message = await self._answers.next_msg(timeout=MISSED_SECONDS)
                except NatsTimeout:
                    self._asked = False
                    raise
                if message.reply:  # an event; one may bear a header of that name, too
                    self._asked = False
                    _ = message.metadata  # raises for a reply subject that is none of JetStream's
                    return message
            headers = message.headers or {}
            status = headers.get("Status", "")
            if status == _HEARTBEAT:
                continue
            self._asked = False
            if status not in (_EXPIRED, _NOTHING):
                self._explain(status, str(headers.get(Header.DESCRIPTION, "")))

    @staticmethod
    def _explain(status: str, description: str) -> None:
        if status == _CONFLICT and "deleted" not in description.lower():
            raise BusError(f"the server ended the request for the next event: {description}", transient=True)
        raise StreamGone("the consumer is not there")
