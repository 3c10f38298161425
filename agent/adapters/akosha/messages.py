"""A JSON-RPC message out of an HTTP answer, which is JSON, or events of which one is the answer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import cast

import httpx2
import orjson

from agent.adapters.akosha import errors
from agent.adapters.akosha.results import Message
from agent.adapters.akosha.server_address import ServerAddress
from agent.domain.errors import SinkError

MAX_BYTES = 16 * 1024 * 1024
ENDING_SECONDS = 0.5


async def answer(response: httpx2.Response, place: ServerAddress, wanted: int, alive: Callable[[], None]) -> Message:
    """Return the message that answers the request `wanted`. `alive` is told of each event before it.

    Raises SinkError for anything else: another's answer, half an answer, no answer, a page for people.
    """
    _check_encoding(response, place)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _checked(parsed(await whole(response, place, MAX_BYTES), place), place, wanted)
    if kind != "text/event-stream":
        hint = errors.PORTAL if kind == "text/html" else errors.ADDRESS
        raise errors.not_mcp(place, f"an answer of type {place.words(kind) or 'unknown'}", hint=hint)
    return await _among_events(httpx2.EventSource(response, max_event_size=MAX_BYTES), place, wanted, alive)


async def _among_events(
    source: httpx2.EventSource, place: ServerAddress, wanted: int, alive: Callable[[], None]
) -> Message:
    size = 0
    # It is a generator, though its type does not say so; closed at once, it leaves nothing to the loop's own hooks.
    async with contextlib.aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as events:
        async for event in events:
            alive()
            size += len(event.data)
            if size > MAX_BYTES:
                raise _too_large(place)
            if event.event != "message" or not event.data:
                continue
            message = parsed(event.data.encode(), place)
            # What has a method is a notification, or a request of the server's own: neither is for us.
            if "method" not in message:
                found = _checked(message, place, wanted)
                await _to_the_end(events)
                return found
    raise errors.garbled(place, "the answer broke off")


async def _to_the_end(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """Wait a moment for the end of the events, which is due: only then can the connection be used again."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(ENDING_SECONDS):
            async for _ in events:
                pass


async def whole(response: httpx2.Response, place: ServerAddress, limit: int) -> bytes:
    """Return the body, if it is not compressed and no larger than `limit` bytes. Raises SinkError."""
    _check_encoding(response, place)
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            raise _too_large(place)
    return bytes(body)


def parsed(data: bytes, place: ServerAddress) -> Message:
    """Return a JSON object. Raises SinkError."""
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.garbled(place, "the answer is not JSON") from error
    if not isinstance(message, dict):
        raise errors.garbled(place, "the answer is not a JSON object")
    return message


def _checked(message: Message, place: ServerAddress, wanted: int) -> Message:
    # A server that could not read the request answers without its id.
    is_error = isinstance(message.get("error"), dict)
    given = message.get("id")
    if (isinstance(given, bool) or given != wanted) and not (is_error and given in (None, "server-error")):
        raise errors.garbled(place, "the answer is to another request")
    if not is_error and not isinstance(message.get("result"), dict):
        raise errors.garbled(place, "the answer has neither a result nor an error")
    return message


def _check_encoding(response: httpx2.Response, place: ServerAddress) -> None:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise errors.compressed(place, encoding)


def _too_large(place: ServerAddress) -> SinkError:
    return errors.garbled(place, f"the answer is larger than {MAX_BYTES // 2**20} MiB")
