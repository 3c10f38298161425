"""The loopback port's own rules: any user's process reaches it, and any web page's script through a browser."""

import hmac
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from agent.entrypoints.control_api.problems import Problem

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost", "[::1]")
_HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class LoopbackRules:
    """What a request on this port must bear. Every check raises Problem: 403 or 401, with what is wrong."""

    port: int
    token: str

    def check_place(self, request: web.BaseRequest) -> None:
        """Host must name this place, and so must Origin where a browser sends one.

        A name of somebody else's that leads here (DNS rebinding) stays in Host.
        """
        allowed = {f"{name}:{self.port}" for name in _NAMES} | (set(_NAMES) if self.port == _HTTP_PORT else set())
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in allowed:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"Host is {_quoted(hosts)}, not this agent's",
                hint=f"ask http://{ADDRESS}:{self.port}/",
                close=True,
            )
        origins = request.headers.getall("Origin", [])
        if origins and origins != [f"http://{hosts[0].lower()}"]:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"Origin is {_quoted(origins)}: pages from elsewhere may not ask",
                hint="use a program of this machine",
                close=True,
            )

    def check_token(self, request: web.BaseRequest) -> None:
        """A change needs the token."""
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode(errors="surrogateescape"), self.token.encode()
        ):
            return
        what = "the token is not this agent's" if given else "there is no token"
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            f"changes over this port need a token: {what}",
            hint="send Authorization: Bearer TOKEN, with akosha_agent_http_token's value, or, where that is not set, "
            "the text of http-token in the state directory",
            headers={"WWW-Authenticate": 'Bearer realm="akosha-agent"'},
            close=True,
        )


def _quoted(texts: list[str]) -> str:
    return ", ".join(repr(text[:80]) for text in texts[:3]) or "not there"
