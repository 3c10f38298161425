"""What every request meets first: is it one of ours, may it be asked from there, and how it is told what is wrong."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import structlog
from aiohttp import web

from agent.domain.errors import AkoshaError, WireError
from agent.entrypoints.control_api.auth import LoopbackRules
from agent.entrypoints.control_api.connection import Connection
from agent.entrypoints.control_api.problems import COMMON, Problem
from agent.entrypoints.control_api.route import Route

_ELSEWHERE = "GET /openapi.json tells what can be asked"

_log = structlog.get_logger()


class ControlApp:
    """Finds the route and has it answer. `loopback` is there once the port is open."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.loopback: LoopbackRules | None = None
        self._table: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._table.setdefault(route.path, {})[route.method] = route
        self._families = {
            path.rpartition("/")[0]: methods for path, methods in self._table.items() if path.endswith("}")
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer, whatever happens."""
        try:
            response = await self._route(request).answer(request)
        except Problem as problem:
            response = problem.response()
        except AkoshaError as error:
            if not isinstance(error, WireError):  # that is the fault of whoever asked
                _log.warning("control_unanswered", path=request.path[:80], error=str(error))
            response = Problem.of(error).response()
        except Exception as error:
            if isinstance(error, ConnectionError) and _has_left(request):
                raise  # nobody is there to get one
            _log.exception("control_failed", path=request.path[:80])
            what = "the agent met an error: its log says which"
            response = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, what, close=True).response()
        if not response.prepared:
            response.headers.update(COMMON)
        return response

    def _route(self, request: web.BaseRequest) -> Route:
        """Return the route of a request that may be asked. Raises Problem."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.head_arrived()
        if connection.surplus:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "there are too many connections",
                headers={"Retry-After": "1"},
                close=True,
            )
        if connection.loopback:
            assert self.loopback is not None
            self.loopback.check_place(request)
        methods = self._methods(request.path)
        if methods is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no {request.path[:80]!r} here", hint=_ELSEWHERE)
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allowed = _allowed(methods)
            what = f"{request.path} does not take {request.method[:20]}, but {allowed}"
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, what, hint=_ELSEWHERE, headers={"Allow": allowed})
        if connection.loopback and route.changes:
            assert self.loopback is not None
            self.loopback.check_token(request)
        known = {parameter.name for parameter in route.parameters if parameter.place == "query"}
        if unknown := sorted(request.query.keys() - known):
            what = f"unknown query parameter {unknown[0][:80]!r}"
            raise Problem(HTTPStatus.BAD_REQUEST, what, hint=f"known here: {', '.join(known) or 'none'}")
        return route

    def _methods(self, path: str) -> Mapping[str, Route] | None:
        """Return the routes of a path, None where there are none."""
        family, _, member = path.rpartition("/")
        return self._table.get(path) or (self._families.get(family) if member else None)


def _has_left(request: web.BaseRequest) -> bool:
    """Say whether the client has closed the connection; a stopped agent that goes on finds it closing."""
    return request.transport is None or request.transport.is_closing()


def _allowed(methods: Mapping[str, Route]) -> str:
    return ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
