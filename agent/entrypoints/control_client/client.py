"""HTTP over the control socket, on httpx2: no proxy, no environment, no TLS; every failure is a NoAnswer.

Importing this loads httpx2, and blocks for a moment.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self, cast

import httpx2
import structlog

from agent.adapters.unix_http import http_client, socket_address
from agent.domain.errors import WireError
from agent.domain.events import SyncAsked, SyncProgress
from agent.entrypoints.control_client.endpoint import NoAnswer
from agent.entrypoints.control_client.status_document import told
from agent.entrypoints.status_view import StatusDocument
from agent.ports import Codec, HistoryEntry

ANSWER_SECONDS = 3.0
"""How long an answer may take, from the connection to its last byte; of events, to the first."""

SILENCE_SECONDS = 40.0
"""How long a stream of events may be without a word: the agent gives a sign of life every 15 s."""

LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
LARGEST_EVENT_BYTES = 2 * LARGEST_ANSWER_BYTES

_log = structlog.get_logger()


class ControlClient:
    """A client of the agent that listens at a socket's path. Enter it once; that does not connect yet."""

    def __init__(self, path: Path, codec: Codec) -> None:
        self._path, self._codec = path, codec
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises NoAnswer where the socket has no address."""
        with _translated():
            address = self._open.enter_context(socket_address(self._path))
        self._client = await self._open.enter_async_context(http_client(address))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def status(self) -> StatusDocument:
        """Return how everything stands, as the agent says it. Raises NoAnswer."""
        return told(await self._answer(self._client.build_request("GET", "/v1/status"), httpx2.codes.OK))

    async def ask(self, ask: SyncAsked) -> None:
        """Ask for a sync; its result is among the events, and in the ledger. Raises NoAnswer.

        After a NoAnswer it may have been heard all the same. It goes as the event that it is, not as a `POST /v1/sync`:
        an agent of another system takes no part in it.
        """
        headers = {"Content-Type": "application/cloudevents+json"}
        body = self._codec.encode(ask)
        request = self._client.build_request("POST", "/v1/events", content=body, headers=headers)
        await self._answer(request, httpx2.codes.ACCEPTED)

    @asynccontextmanager
    async def events(
        self, *, after: int | None = None
    ) -> AsyncIterator[AsyncGenerator[HistoryEntry | SyncProgress, None]]:
        """Yield the history after a position (None: what comes from now on), as it grows, and progress in between.

        Whatever happens once the block has begun is among them. They end where the agent ends. Raises NoAnswer, while
        they are read too; what cannot be read of a newer agent is passed over.
        """
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        request = self._client.build_request(
            "GET", "/v1/events", headers=headers, timeout=httpx2.Timeout(None, read=SILENCE_SECONDS)
        )
        with _translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._client.send(request, stream=True)
        try:
            if response.status_code != httpx2.codes.OK:
                raise NoAnswer(f"the agent answers {response.status_code} to {request.url.path}")
            async with aclosing(self._among(response)) as found:
                yield found
        finally:
            await response.aclose()

    async def _among(self, response: httpx2.Response) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        source = httpx2.EventSource(response, max_event_size=LARGEST_EVENT_BYTES)
        with _translated():
            # It is a generator, though its type does not say so.
            async with aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as events:
                async for event in events:
                    if event.data and (item := self._read(event)) is not None:
                        yield item

    def _read(self, told: httpx2.ServerSentEvent) -> HistoryEntry | SyncProgress | None:
        try:
            event = self._codec.decode(told.data.encode())
            if isinstance(event, SyncProgress):
                return event
            return HistoryEntry(int(told.id), event)
        except (WireError, ValueError) as error:
            _log.debug("event_not_understood", type=told.event[:80], error=str(error))
            return None

    async def _answer(self, request: httpx2.Request, wanted: int) -> bytes:
        with _translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._client.send(request, stream=True)
                try:
                    body = bytearray()
                    async for piece in response.aiter_bytes():
                        body += piece
                        if len(body) > LARGEST_ANSWER_BYTES:
                            raise NoAnswer(f"the answer to {request.url.path} is larger than an answer can be")
                finally:
                    await response.aclose()
        if response.status_code != wanted:
            raise NoAnswer(f"the agent answers {response.status_code} to {request.url.path}")
        return bytes(body)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what httpx2, the clock and the system say within the block as a NoAnswer."""
    try:
        yield
    except (TimeoutError, httpx2.ReadTimeout) as error:
        raise NoAnswer("the agent does not answer", silent=True) from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise NoAnswer(f"the agent cannot be asked: {str(error) or type(error).__name__}") from error
