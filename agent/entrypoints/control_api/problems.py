"""What goes wrong, as whoever asked is told it: problem documents (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from aiohttp import web

from agent import __version__
from agent.domain.errors import AkoshaError, WireError

PROBLEM_TYPE = "application/problem+json"

COMMON = {"Server": f"akosha-agent/{__version__}", "Cache-Control": "no-store"}
"""Headers of every answer."""


class Problem(Exception):  # noqa: N818 - it is an answer
    """The request ends with this status. `detail`: what is wrong; `hint`: what mends it; `close`: so ends the rest."""

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
        """Return what an error of ours is to whoever asked: their request's fault, or something that is stuck here."""
        fault = HTTPStatus.BAD_REQUEST if isinstance(error, WireError) else HTTPStatus.SERVICE_UNAVAILABLE
        return cls(fault, error.message, hint=error.hint)

    def response(self) -> web.Response:
        """Return the answer."""
        document = {
            "title": self.status.phrase,
            "detail": self.detail,
            "hint": self.hint,
            "status": self.status.value,
        }
        response = web.Response(
            status=self.status,
            body=orjson.dumps(document),
            content_type=PROBLEM_TYPE,
            headers={**COMMON, **self.headers},
        )
        if self.close:
            response.force_close()
        return response
