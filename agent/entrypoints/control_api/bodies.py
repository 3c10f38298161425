"""What comes in a request's body: read within limits, and understood or refused with the reason."""

import asyncio
from collections.abc import Collection
from http import HTTPStatus

import orjson
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from agent.entrypoints.control_api.limits import Limits
from agent.entrypoints.control_api.problems import Problem


async def body_of(request: web.BaseRequest, takes: Collection[str], limits: Limits) -> bytes:
    """Return the body. Raises Problem: 400, 408, 413 or 415."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() not in takes:
        given = request.headers.get("Content-Type", "")[:80]
        what = f"Content-Type is {given!r}" if given else "there is no Content-Type"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, what, hint=f"send {' or '.join(takes)}")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed", hint="send it as it is")
    if (request.content_length or 0) > limits.body_bytes:
        raise _too_large(limits)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun yet
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while piece := await request.content.readany():
                body += piece
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        what = f"the body did not come within {limits.body_seconds:g} s"
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, what, close=True) from None
    except (web.RequestPayloadError, ClientPayloadError, HttpProcessingError) as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is not what its head says", close=True) from error
    return bytes(body)


def object_of(body: bytes) -> dict[str, object]:
    """Return the JSON object that a body is; no body is an empty one. Raises Problem."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is JSON, but no object", hint='send {"name": value, ...}')
    return document


def _too_large(limits: Limits) -> Problem:
    what = f"the body is larger than {limits.body_bytes} bytes"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what, close=True)
