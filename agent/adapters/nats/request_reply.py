"""Requests and replies over core NATS. Each new connection subscribes again; nothing is stored."""

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

MAX_QUEUED = 16
"""Requests that may wait for their turn; more are not answered."""

_log = structlog.get_logger()


class NatsResponder:
    """`agent.ports.Subscription` to the requests on one subject, which it answers one at a time."""

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
            await self._connection.wait_until_lost(client)

    async def _serve(self, client: Client) -> None:
        requests: asyncio.Queue[Msg] = asyncio.Queue(MAX_QUEUED)

        async def on_message(message: Msg) -> None:
            if message.reply and not requests.full():
                requests.put_nowait(message)

        async with AsyncExitStack() as stack:
            with translated(f"subscribing to {self._subject}", client):
                subscription = await client.subscribe(self._subject, cb=on_message)
                stack.push_async_callback(_unsubscribe, client, subscription)
                await client.confirm_sent()
            self.ready.set()
            lost = asyncio.create_task(self._connection.wait_until_lost(client), name=f"answer-{self._subject}-watch")
            stack.callback(lost.cancel)
            while not lost.done():
                request = asyncio.create_task(requests.get(), name=f"answer-{self._subject}-next")
                try:
                    await asyncio.wait({request, lost}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    request.cancel()
                if request.done() and not request.cancelled():
                    await self._reply(client, request.result())

    async def _reply(self, client: Client, request: Msg) -> None:
        answer = await self._answer(request.data)
        try:
            with translated("answering", client):
                await client.publish(request.reply, answer)
        except BusError as error:
            _log.warning("answer_not_sent", subject=self._subject, reason=str(error))


async def _unsubscribe(client: Client, subscription: Subscription) -> None:
    """Unsubscribe, so that the server refuses later requests at once."""
    if not client.lost.is_set():
        with suppress(BusError), translated("unsubscribing", client):
            await subscription.unsubscribe()
