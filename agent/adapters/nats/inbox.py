"""Answers to a request that may be any number of messages with any subject and headers, such as stored events.

nats-py's `request` identifies an answer by its subject, and raises if it has the header `Status: 503`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agent.adapters.nats.client import CLOSE_SECONDS, Client
from agent.adapters.nats.errors import translated
from agent.domain.errors import BusError


class Inbox:
    """Receives the answers to one request at a time. Get it from `open_inbox`."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client, self._prefix = client, prefix
        self._answers: asyncio.Queue[Msg | BaseException] = asyncio.Queue()
        self._failure: asyncio.Future[None] | None = None

    async def request(self, subject: str, payload: bytes) -> None:
        """Send a request, and forget an earlier one."""
        self.forget()
        reply = f"{self._prefix}.{self._client.new_inbox().rpartition('.')[2]}"
        self._failure = self._client.failure_of(reply)
        self._failure.add_done_callback(self._failed)
        await self._client.publish(subject, payload, reply=reply)

    async def receive(self, message: Msg) -> None:
        self._answers.put_nowait(message)

    async def next(self, seconds: float) -> Msg:
        """Return the next answer. Raises TimeoutError; nats-py's error for a lost connection or a denied request."""
        async with asyncio.timeout(seconds):
            answer = await self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def check(self) -> None:
        """Raise as `next` if the request has failed."""
        if self._failure is not None and self._failure.done():
            self._failure.result()

    def forget(self) -> None:
        if self._failure is not None:
            self._failure.cancel()

    def _failed(self, failure: "asyncio.Future[None]") -> None:
        if not failure.cancelled() and (error := failure.exception()) is not None:
            self._answers.put_nowait(error)


@asynccontextmanager
async def open_inbox(client: Client) -> AsyncIterator[Inbox]:
    """Subscribe to a new inbox, and unsubscribe at the end. Raises BusError."""
    prefix = client.new_inbox()
    inbox = Inbox(client, prefix)
    with translated("subscribing to an inbox"):
        subscription = await client.subscribe(f"{prefix}.*", cb=inbox.receive)
    try:
        yield inbox
    finally:
        inbox.forget()
        await unsubscribe(client, subscription)


async def unsubscribe(client: Client, subscription: Subscription) -> None:
    """Unsubscribe if the connection is up, with a time limit. Never raises."""
    if not client.lost.is_set():
        with suppress(BusError), translated("unsubscribing"):
            async with asyncio.timeout(CLOSE_SECONDS):
                await subscription.unsubscribe()
