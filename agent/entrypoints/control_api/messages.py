"""Bodies of requests and responses: JSON and its limits."""

import asyncio
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import TypeVar

import orjson
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError

from agent.entrypoints.control_api.connection import Limits
from agent.entrypoints.control_api.problems import Problem
from agent.entrypoints.control_api.routes import JSON

Model = TypeVar("Model", bound=BaseModel)

WHOLE_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
"""A number in a query or a header: SQLite stores it."""


async def read_body(request: web.Request, content_types: Collection[str], limits: Limits) -> bytes:
    """Return the body of a request with one of these content types. Raises Problem: 400, 408, 413 or 415."""
    if request.content_type not in content_types or "Content-Type" not in request.headers:
        given = request.headers.get("Content-Type", "")[:80]
        detail = f"Content-Type is {given!r}" if given else "there is no Content-Type"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, hint=f"send {' or '.join(content_types)}")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed", hint="send it uncompressed")
    too_large = Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limits.body_bytes} bytes", close=True
    )
    if (request.content_length or 0) > limits.body_bytes:
        raise too_large
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await request.read()
    except TimeoutError:
        detail = f"the body was not received within {limits.body_seconds:g} s"
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, detail, close=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except (web.RequestPayloadError, ClientPayloadError, HttpProcessingError) as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "the body does not match its headers", close=True) from error


def parse_body(body: bytes, model: type[Model]) -> Model:
    """Return the model in a JSON body; an empty body has the defaults. Raises Problem."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is not a JSON object", hint='send {"name": value, ...}')
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        hint = f"known fields: {', '.join(model.model_fields)}"
        raise Problem(HTTPStatus.BAD_REQUEST, f"{field}: {first['msg']}", hint=hint) from error


def json_response(status: HTTPStatus, document: object) -> web.Response:
    """Return a response with a JSON document; bytes are an encoded one."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return web.Response(status=status, body=body, content_type=JSON)
