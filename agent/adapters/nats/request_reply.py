"""Requests and replies over plain NATS: subscribed again on every connection, nothing is stored."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.errors import translated
from agent.domain.errors import BusError

MOST_WAITING = 16
"""Questions that wait for their turn; more go unanswered."""

_log = structlog.get_logger()


class NatsResponder:
    """`agent.ports.Subscription` to questions on one subject. One is answered at a time."""

    def __init__(
        self, subject: str, answer: Callable[[bytes], Awaitable[bytes]], *, connection: NatsConnection
    ) -> None:
        self._subject, self._answer, self._connection = subject, answer, connection
        self.ready = asyncio.Event()
        self.worker = asyncio.create_task(self._run(), name=f"answer-{subject}")

    async def stop(self) -> None:
        self.worker.cancel()
        await asyncio.wait({self.worker})

    async def _run(self) -> None:
        while True:
            client = await self._connection.wait()
            try:
                await self._serve(client)
            except BusError as error:
                _log.debug("responder_interrupted", subject=self._subject, reason=str(error))
                self._connection.suspect(client)
            finally:
                self.ready.clear()
            await self._connection.wait_beyond(client)

    async def _serve(self, client: Client) -> None:
        asked: asyncio.Queue[Msg] = asyncio.Queue(MOST_WAITING)

        async def on_message(message: Msg) -> None:
            if message.reply and not asked.full():
                asked.put_nowait(message)

        async with AsyncExitStack() as stack:
            with translated(f"subscribing to {self._subject}", client):
                subscription = await client.subscribe(self._subject, cb=on_message)
                stack.push_async_callback(_unsubscribed, client, subscription)
                await client.confirm_sent()
            self.ready.set()
            gone = asyncio.create_task(self._connection.wait_beyond(client), name=f"answer-{self._subject}-watch")
            stack.callback(gone.cancel)
            while not gone.done():
                question = asyncio.create_task(asked.get(), name=f"answer-{self._subject}-next")
                try:
                    await asyncio.wait({question, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    question.cancel()
                if question.done() and not question.cancelled():
                    await self._reply(client, question.result())

    async def _reply(self, client: Client, question: Msg) -> None:
        text = await self._answer(question.data)
        try:
            with translated("answering", client):
                await client.publish(question.reply, text)
        except BusError as error:
            _log.warning("answer_not_sent", subject=self._subject, reason=str(error))


async def _unsubscribed(client: Client, subscription: Subscription) -> None:
    """Unsubscribe: later requests are refused at once."""
    if not client.lost.is_set():
        with suppress(BusError), translated("leaving a subject", client):
            await subscription.unsubscribe()
