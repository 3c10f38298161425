"""The answers: one method for everything that can be asked."""

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.domain.errors import WireError
from agent.domain.events import SyncAsked
from agent.domain.routing import MANUAL
from agent.entrypoints.control_api.bodies import body_of, object_of
from agent.entrypoints.control_api.limits import Limits
from agent.entrypoints.control_api.problems import Problem
from agent.entrypoints.control_api.route import CLOUD_EVENT, JSON
from agent.entrypoints.control_api.sse import EventReaders
from agent.entrypoints.results import contract
from agent.entrypoints.status_view import StatusView
from agent.settings import Settings

POSITION = re.compile(r"[0-9]{1,18}", re.ASCII)


class Wish(BaseModel):
    """What a sync may be asked with: `id` becomes the request's, and the same one again changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(default="", pattern=r"^[A-Za-z0-9._:-]{0,128}$", description="The request's id; none: a new one.")
    method: str = Field(default="auto", pattern="^(auto|cloud|http)$", description="How; auto follows the settings.")
    enable_fallback: bool = Field(default=True, description="Whether the next method follows where one fails.")
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True


class Handlers:
    """What the desk says, as HTTP has it."""

    def __init__(
        self,
        agent_service: AgentService,
        settings: Settings,
        *,
        metrics: Callable[[], Awaitable[tuple[bytes, str]]],
        readers: EventReaders,
        limits: Limits,
    ) -> None:
        self._agent_service, self._settings, self._home = agent_service, settings, Home.of(settings)
        self._metrics, self._readers, self._limits = metrics, readers, limits

    async def status(self, _request: web.BaseRequest) -> web.StreamResponse:
        """The document of `status --json`."""
        status, problem = await self._agent_service.status(), await self._agent_service.survey_problem()
        holder = await asyncio.to_thread(self._home.holder)
        running = None
        if holder is not None:
            running = {"pid": holder.pid, "command": holder.command, "since": str(holder.since)}
        document = StatusView(status, running, problem).document(self._settings)
        return _json(HTTPStatus.OK, json.dumps(document, default=str).encode())

    async def sync(self, request: web.BaseRequest) -> web.StreamResponse:
        """Ask for a sync."""
        given = object_of(await body_of(request, (JSON,), self._limits))
        try:
            wish = Wish.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(piece) for piece in first["loc"])[:80]
            known = f"known are {', '.join(Wish.model_fields)}"
            raise Problem(HTTPStatus.BAD_REQUEST, f"{place}: {first['msg']}", hint=known) from error
        ask = SyncAsked(
            id=wish.id or str(uuid.uuid4()),
            time=self._home.clock.now(),
            system_id=self._agent_service.identity.system_id,
            reason=MANUAL,
            method=wish.method,
            enable_fallback=wish.enable_fallback,
            upload_reflections=wish.upload_reflections,
            upload_knowledge_graph=wish.upload_knowledge_graph,
        )
        if await self._agent_service.request_sync(ask) is None:
            raise await self._refused(ask.id)
        return _json(HTTPStatus.ACCEPTED, {"request_id": ask.id, "accepted": True})

    async def _refused(self, request_id: str) -> Problem:
        """Return the refusal's own words."""
        result = await self._agent_service.outcome(request_id)
        told = {} if result is None else contract(result)
        what = told.get("error") or f"the sync {request_id} was refused"
        return Problem(HTTPStatus.CONFLICT, str(what), hint=str(told.get("hint") or "akosha-agent status"))

    async def result(self, request: web.BaseRequest) -> web.StreamResponse:
        """The result of a request."""
        request_id = request.path.rpartition("/")[2]
        result = await self._agent_service.outcome(request_id)
        if result is None:
            what = f"there is no result of {request_id[:128]!r}"
            cure = "ask again when it has ended, or follow GET /v1/events: it comes as an event with this request_id"
            raise Problem(HTTPStatus.NOT_FOUND, what, hint=cure)
        return _json(HTTPStatus.OK, contract(result))

    async def take(self, request: web.BaseRequest) -> web.StreamResponse:
        """Take an event."""
        body = await body_of(request, (CLOUD_EVENT, JSON), self._limits)
        try:
            event = self._home.codec.decode(body)
        except WireError as error:
            raise Problem.of(error) from error
        return _json(HTTPStatus.ACCEPTED, {"id": event.id, "new": await self._agent_service.accept(event)})

    async def events(self, request: web.BaseRequest) -> web.StreamResponse:
        """Tell what happens. `Last-Event-ID`, which a reader sends that comes back, counts more than `after`."""
        given = request.headers.get("Last-Event-ID") or request.query.get("after")
        if given is not None and not POSITION.fullmatch(given):
            what = f"{given[:80]!r} is no position in the history"
            raise Problem(HTTPStatus.BAD_REQUEST, what, hint="a whole number: the id of the last event you know, or 0")
        return await self._readers.follow(request, after=None if given is None else int(given))

    async def metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        """The metrics, for Prometheus."""
        body, content_type = await self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def health(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Whether all is well; that there is an answer says that the agent's loop runs."""
        return self._told(ready=True)

    async def ready(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Whether it watches and hears requests, and all is well."""
        return self._told(ready=self._agent_service.ready)

    def _told(self, *, ready: bool) -> web.StreamResponse:
        if trouble := self._agent_service.problems():
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "trouble": dict(trouble)})
        if not ready:
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "starting", "trouble": {}})
        return _json(HTTPStatus.OK, {"status": "ok"})


def _json(status: HTTPStatus, document: object) -> web.Response:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return web.Response(status=status, body=body, content_type=JSON)
