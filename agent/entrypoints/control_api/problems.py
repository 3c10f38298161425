"""Problem documents (RFC 9457), and the middleware that turns errors into them."""

from collections.abc import Mapping
from http import HTTPStatus

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field

from agent import __version__
from agent.domain.errors import AkoshaError, WireError

PROBLEM_TYPE = "application/problem+json"
COMMON_HEADERS = {
    "Server": f"akosha-agent/{__version__}",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response. The last two keep browsers from using it in a page of another site."""

_SEE_OPENAPI = "GET /openapi.json describes every route"

_log = structlog.get_logger()


class ProblemDocument(BaseModel):
    """An error, and how to fix it (RFC 9457)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    detail: str
    hint: str = Field(description="The command or setting that fixes the error; empty if there is none.")
    status: int


class Problem(Exception):  # noqa: N818 - it is a response
    """Ends a request with a problem document. With `close`, the connection is closed, too."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.hint = status, detail, hint
        self.headers, self.close = headers or {}, close

    @classmethod
    def of(cls, error: AkoshaError) -> "Problem":
        """Return the problem for an AkoshaError: 400 for a malformed event, else 503."""
        status = HTTPStatus.BAD_REQUEST if isinstance(error, WireError) else HTTPStatus.SERVICE_UNAVAILABLE
        return cls(status, error.message, hint=error.hint)

    def response(self) -> web.Response:
        document = ProblemDocument(
            title=self.status.phrase, detail=self.detail, hint=self.hint, status=self.status.value
        )
        response = web.Response(
            status=self.status,
            body=orjson.dumps(document.model_dump()),
            content_type=PROBLEM_TYPE,
            headers={**COMMON_HEADERS, **self.headers},
        )
        if self.close:
            response.force_close()
        return response


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to every error with a problem document; log errors that the client did not cause."""
    try:
        return await handler(request)
    except Problem as error:
        problem = error
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{request.path[:80]} does not allow {request.method[:20]}, only {allowed}"
        problem = Problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, hint=_SEE_OPENAPI, headers={"Allow": allowed})
    except web.HTTPNotFound:
        problem = Problem(HTTPStatus.NOT_FOUND, f"there is no route {request.path[:80]!r}", hint=_SEE_OPENAPI)
    except AkoshaError as error:
        if not isinstance(error, WireError):
            _log.warning("control_request_failed", path=request.path[:80], error=str(error))
        problem = Problem.of(error)
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            raise  # the client has disconnected
        _log.exception("control_failed", path=request.path[:80])
        problem = internal_error()
    return problem.response()


def internal_error(status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR) -> Problem:
    return Problem(status, "internal error: see the agent's log", close=True)
