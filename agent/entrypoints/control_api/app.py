"""The aiohttp application: handlers of all routes, and the middleware in front of them."""

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

import orjson
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from pydantic import ValidationError

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.domain.events import SyncAsked
from agent.domain.routing import MANUAL
from agent.entrypoints.control_api.auth import LoopbackRules
from agent.entrypoints.control_api.connection import Connection, Limits
from agent.entrypoints.control_api.openapi import CLOUD_EVENT, JSON, ROUTES, SyncOrder, openapi_document
from agent.entrypoints.control_api.problems import COMMON_HEADERS, Problem, problem_middleware
from agent.entrypoints.control_api.sse import EventStreams
from agent.entrypoints.formatting import json_value
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument, running_process
from agent.settings import Settings

_QUERY_PARAMETERS = {(route.method, route.path): route.query_parameters for route in ROUTES}
_POSITION = re.compile(r"[0-9]{1,18}", re.ASCII)

Metrics = Callable[[], Awaitable[tuple[bytes, str]]]
"""Returns the metrics and their content type."""


class ControlApp:
    """Builds the application. `loopback` is set once the port is open; `requests` are the tasks of open requests."""

    def __init__(self, agent_service: AgentService, settings: Settings, *, metrics: Metrics, limits: Limits) -> None:
        self._agent_service, self._settings, self._home = agent_service, settings, Home.of(settings)
        self._metrics, self._limits = metrics, limits
        self._openapi = b""
        self.streams = EventStreams(agent_service, self._home.codec.encode, limits)
        self.loopback: LoopbackRules | None = None
        self.requests: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """Return the application. Each route of `ROUTES` is served by the method named in `handler`."""
        app = web.Application(
            middlewares=[problem_middleware, self._check_access], client_max_size=self._limits.body_bytes
        )
        for route in ROUTES:
            handler = getattr(self, route.handler)
            if route.method == "GET":
                app.router.add_get(route.path, handler, allow_head=True)
            else:
                app.router.add_route(route.method, route.path, handler)
        app.on_response_prepare.append(_add_common_headers)
        return app

    @web.middleware
    async def _check_access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests over the connection limit, from other sites, without a token, or with unknown parameters."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.head_received()
        self.requests.add(request.task)
        request.task.add_done_callback(self.requests.discard)
        if connection.over_limit:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many connections",
                headers={"Retry-After": "1"},
                close=True,
            )
        if connection.over_tcp:
            assert self.loopback is not None
            self.loopback.check_origin(request)
        resource = request.match_info.route.resource
        if resource is None:  # no such route or method: the handler raises
            return await handler(request)
        if connection.over_tcp and request.method == "POST":
            assert self.loopback is not None
            self.loopback.check_token(request)
        known = _QUERY_PARAMETERS["GET" if request.method == "HEAD" else request.method, resource.canonical]
        if unknown := sorted(request.query.keys() - set(known)):
            detail = f"unknown query parameter {unknown[0][:80]!r}"
            raise Problem(HTTPStatus.BAD_REQUEST, detail, hint=f"known: {', '.join(known) or 'none'}")
        return await handler(request)

    async def status(self, _request: web.Request) -> web.StreamResponse:
        status, problem = await self._agent_service.status(), await self._agent_service.survey_problem()
        running = await asyncio.to_thread(running_process, self._home)
        document = StatusDocument.of(status, self._settings, running=running, problem=problem)
        return _json_response(HTTPStatus.OK, json.dumps(document.to_dict(), default=json_value).encode())

    async def sync(self, request: web.Request) -> web.StreamResponse:
        order = _parse_order(await self._read_body(request, (JSON,)))
        ask = SyncAsked(
            id=order.id or str(uuid.uuid4()),
            time=self._home.clock.now(),
            system_id=self._agent_service.identity.system_id,
            reason=MANUAL,
            method=order.method,
            enable_fallback=order.enable_fallback,
            upload_reflections=order.upload_reflections,
            upload_knowledge_graph=order.upload_knowledge_graph,
        )
        if await self._agent_service.request_sync(ask) is not None:
            return _json_response(HTTPStatus.ACCEPTED, {"request_id": ask.id, "accepted": True})
        result = await self._agent_service.outcome(ask.id)
        refusal = None if result is None else ResultDocument.of(result)
        raise Problem(
            HTTPStatus.CONFLICT,
            (refusal and refusal.error) or f"the sync {ask.id} was refused",
            hint=(refusal and refusal.hint) or "akosha-agent status",
        )

    async def result(self, request: web.Request) -> web.StreamResponse:
        request_id = request.match_info["request_id"]
        result = await self._agent_service.outcome(request_id)
        if result is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                f"there is no result for {request_id[:128]!r}",
                hint="ask again later, or follow GET /v1/events: the result is an event with this request_id",
            )
        return _json_response(HTTPStatus.OK, ResultDocument.of(result).to_dict())

    async def receive_event(self, request: web.Request) -> web.StreamResponse:
        event = self._home.codec.decode(await self._read_body(request, (CLOUD_EVENT, JSON)))
        return _json_response(HTTPStatus.ACCEPTED, {"id": event.id, "new": await self._agent_service.accept(event)})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """`Last-Event-ID`, which a reader sends when it reconnects, takes precedence over `after`."""
        position = request.headers.get("Last-Event-ID") or request.query.get("after")
        if position is not None and not _POSITION.fullmatch(position):
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"{position[:80]!r} is not a position in the history",
                hint="use the id of the last event received, or 0",
            )
        return await self.streams.respond(request, after=None if position is None else int(position))

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        body, content_type = await self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def health(self, _request: web.Request) -> web.StreamResponse:
        return self._health_response(ready=True)

    async def readiness(self, _request: web.Request) -> web.StreamResponse:
        return self._health_response(ready=self._agent_service.ready)

    async def openapi(self, _request: web.Request) -> web.StreamResponse:
        if not self._openapi:
            self._openapi = await asyncio.to_thread(lambda: orjson.dumps(openapi_document()))
        return _json_response(HTTPStatus.OK, self._openapi)

    def _health_response(self, *, ready: bool) -> web.StreamResponse:
        if problems := self._agent_service.problems():
            return _json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "trouble": dict(problems)})
        if not ready:
            return _json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "starting", "trouble": {}})
        return _json_response(HTTPStatus.OK, {"status": "ok"})

    async def _read_body(self, request: web.Request, content_types: Collection[str]) -> bytes:
        """Raises Problem: 400, 408, 413 or 415."""
        if request.content_type not in content_types or "Content-Type" not in request.headers:
            given = request.headers.get("Content-Type", "")[:80]
            detail = f"Content-Type is {given!r}" if given else "there is no Content-Type"
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, hint=f"send {' or '.join(content_types)}")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed", hint="send it uncompressed")
        too_large = Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self._limits.body_bytes} bytes", close=True
        )
        if (request.content_length or 0) > self._limits.body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await request.read()
        except TimeoutError:
            detail = f"the body was not received within {self._limits.body_seconds:g} s"
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, detail, close=True) from None
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except (web.RequestPayloadError, ClientPayloadError, HttpProcessingError) as error:
            raise Problem(HTTPStatus.BAD_REQUEST, "the body does not match its headers", close=True) from error


def _parse_order(body: bytes) -> SyncOrder:
    """Return the order; an empty body means the defaults. Raises Problem."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is not a JSON object", hint='send {"name": value, ...}')
    try:
        return SyncOrder.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        hint = f"known fields: {', '.join(SyncOrder.model_fields)}"
        raise Problem(HTTPStatus.BAD_REQUEST, f"{field}: {first['msg']}", hint=hint) from error


async def _add_common_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)


def _json_response(status: HTTPStatus, document: object) -> web.Response:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return web.Response(status=status, body=body, content_type=JSON)
