"""The aiohttp application: handlers of all routes, and the middleware in front of them."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from operator import attrgetter

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.domain.events import SyncAsked
from agent.domain.routing import MANUAL
from agent.entrypoints.control_api.auth import LoopbackRules, bearer_of, no_access
from agent.entrypoints.control_api.connection import Connection, Limits
from agent.entrypoints.control_api.messages import WHOLE_NUMBER, json_response, parse_body, read_body
from agent.entrypoints.control_api.openapi import openapi_document
from agent.entrypoints.control_api.page_access import PageAccess
from agent.entrypoints.control_api.page_routes import PageRoutes
from agent.entrypoints.control_api.problems import COMMON_HEADERS, Problem, problem_middleware
from agent.entrypoints.control_api.routes import CLOUD_EVENT, JSON, ROUTES, Access, SyncOrder
from agent.entrypoints.control_api.shared import SharedCalls
from agent.entrypoints.control_api.sse import EventStreams
from agent.entrypoints.formatting import json_value
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument, running_process
from agent.settings import Settings

_ROUTES = {(route.method, route.path): route for route in ROUTES}

Metrics = Callable[[], Awaitable[tuple[bytes, str]]]
"""Returns the metrics and their content type."""


class ControlApp:
    """Builds the application. `requests` are the tasks of the connections that have sent a request."""

    def __init__(
        self,
        agent_service: AgentService,
        settings: Settings,
        *,
        metrics: Metrics,
        limits: Limits,
        page_access: PageAccess,
    ) -> None:
        self._agent_service, self._settings, self._home = agent_service, settings, Home.of(settings)
        self._metrics, self._limits, self._page_access = metrics, limits, page_access
        self._openapi = b""
        self._shared = SharedCalls()
        self.page = PageRoutes(agent_service, settings, page_access, self._shared, limits)
        self.streams = EventStreams(agent_service, self._home.codec.encode, limits)
        self.requests: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """Return the application. Each route of `ROUTES` is served by the method named in `handler`."""
        app = web.Application(
            middlewares=[problem_middleware, self._check_access], client_max_size=self._limits.body_bytes
        )
        for route in ROUTES:
            handler = attrgetter(route.handler)(self)
            if route.method == "GET":
                app.router.add_get(route.path, handler, allow_head=True)
            else:
                app.router.add_route(route.method, route.path, handler)
        for path in ("/", r"/{name:[a-z0-9-]+\.(?:css|js|svg)}"):
            app.router.add_get(path, self.page.file, allow_head=True)
        app.on_response_prepare.append(_add_common_headers)
        return app

    async def aclose(self) -> None:
        """Cancel all requests, and wait for their ends."""
        for task in (requests := set(self.requests)):
            task.cancel()
        if requests:
            await asyncio.wait(requests)
        await self._shared.aclose()

    @web.middleware
    async def _check_access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests over the connection limit, from other sites, without access, or with unknown parameters."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.head_received()
        if request.task not in self.requests:  # requests of one connection have the same task
            self.requests.add(request.task)
            request.task.add_done_callback(self.requests.discard)
        if connection.over_limit:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many connections",
                headers={"Retry-After": "1"},
                close=True,
            )
        if connection.rules is not None:
            connection.rules.check_origin(request)
        resource = request.match_info.route.resource
        if resource is None:  # no such route or method: the handler raises
            return await handler(request)
        route = _ROUTES.get(("GET" if request.method == "HEAD" else request.method, resource.canonical))
        if connection.rules is not None:
            if route is not None:
                await self._check_credentials(request, connection, connection.rules, route.access)
            elif not connection.rules.is_for_page:  # it is a file of the page
                raise web.HTTPNotFound
        known = route.query_parameters if route is not None else ()
        if unknown := sorted(request.query.keys() - set(known)):
            detail = f"unknown query parameter {unknown[0][:80]!r}"
            raise Problem(HTTPStatus.BAD_REQUEST, detail, hint=f"known: {', '.join(known) or 'none'}")
        return await handler(request)

    async def _check_credentials(
        self, request: web.Request, connection: Connection, rules: LoopbackRules, access: Access
    ) -> None:
        """Raise Problem (401 or 403) unless the request over a port has access."""
        if access is Access.SOCKET or (access is Access.PAGE and not rules.is_for_page):
            where = "over the control socket" if access is Access.SOCKET else "at the address of the page"
            raise Problem(HTTPStatus.FORBIDDEN, f"this is done {where} only", hint="akosha-agent open", close=True)
        if access is Access.PAGE or (access is Access.READ and not rules.is_for_page):
            return
        bearer, use = bearer_of(request), self._page_access.use_session
        if not (await use(bearer, connection) if rules.is_for_page else rules.has_token(bearer)):
            raise no_access(request, rules)

    async def status(self, _request: web.Request) -> web.StreamResponse:
        return json_response(HTTPStatus.OK, await self._shared.result("status", self._status))

    async def _status(self) -> bytes:
        status, problem = await self._agent_service.status(), await self._agent_service.survey_problem()
        running = await asyncio.to_thread(running_process, self._home)
        document = StatusDocument.of(status, self._settings, running=running, problem=problem)
        return json.dumps(document.to_dict(), default=json_value).encode()

    async def sync(self, request: web.Request) -> web.StreamResponse:
        order = parse_body(await read_body(request, (JSON,), self._limits), SyncOrder)
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
            return json_response(HTTPStatus.ACCEPTED, {"request_id": ask.id, "accepted": True})
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
        return json_response(HTTPStatus.OK, ResultDocument.of(result).to_dict())

    async def receive_event(self, request: web.Request) -> web.StreamResponse:
        event = self._home.codec.decode(await read_body(request, (CLOUD_EVENT, JSON), self._limits))
        return json_response(HTTPStatus.ACCEPTED, {"id": event.id, "new": await self._agent_service.accept(event)})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """`Last-Event-ID`, which a reader sends when it reconnects, takes precedence over `after`."""
        position = request.headers.get("Last-Event-ID") or request.query.get("after")
        if position is not None and not WHOLE_NUMBER.fullmatch(position):
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"{position[:80]!r} is not a position in the history",
                hint="use the id of the last event received, or 0",
            )
        connection, bearer = request.protocol, bearer_of(request)
        assert isinstance(connection, Connection)
        is_of_page = connection.rules is not None and connection.rules.is_for_page
        return await self.streams.respond(
            request,
            after=None if position is None else int(position),
            may_read=lambda: not is_of_page or self._page_access.is_valid(bearer),  # the session may end
        )

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
        return json_response(HTTPStatus.OK, self._openapi)

    def _health_response(self, *, ready: bool) -> web.StreamResponse:
        if problems := self._agent_service.problems():
            return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "trouble": dict(problems)})
        if not ready:
            return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "starting", "trouble": {}})
        return json_response(HTTPStatus.OK, {"status": "ok"})


async def _add_common_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)
