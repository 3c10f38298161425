"""Access to the control API: the peer's user on the Unix socket; Host, Origin and a token on the loopback port."""

import hmac
import re
import secrets
import socket
import struct
import sys
from asyncio.trsock import TransportSocket
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import structlog
from aiohttp import web

from agent.adapters import fs
from agent.entrypoints.control_api.problems import Problem

ADDRESS = "127.0.0.1"
_HOSTS = (ADDRESS, "localhost", "[::1]")
_HTTP_PORT = 80
_OWN_SITES = frozenset({"none", "same-origin"})

TOKEN_FILE = "http-token"  # noqa: S105 - a file's name
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,512}")
_MAX_TOKEN_BYTES = 1024

_SYSTEM: str = sys.platform
_LINUX_UCRED = struct.Struct("3i")
"""pid, uid, gid."""
_XUCRED = struct.Struct("=II")
"""The first fields of `struct xucred` on macOS: version, uid."""
_XUCRED_BYTES = 76
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1

_log = structlog.get_logger()


def peer_uid(connection: socket.socket | TransportSocket) -> int | None:
    """Return the user ID of the peer of a Unix socket; None if the system does not report it.

    Raises OSError if the peer has disconnected.
    """
    if _SYSTEM == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size)
        return int(_LINUX_UCRED.unpack(credentials)[1])
    if _SYSTEM == "darwin":
        credentials = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        return int(_XUCRED.unpack_from(credentials)[1])
    return None


@dataclass(frozen=True, slots=True)
class LoopbackRules:
    """Rules of a loopback port, which every local process and, through a browser, every web page can reach.

    `token` is empty for a port of the page: there, only its sessions have access, and the address has no other name.
    `check_origin` raises Problem (403).
    """

    address: str
    port: int
    token: str = ""

    @property
    def is_for_page(self) -> bool:
        """Whether this is a port of the page, which is served only while that is open."""
        return not self.token

    def check_origin(self, request: web.BaseRequest) -> None:
        """Require that Host, and Origin and Sec-Fetch-Site if a browser sends them, name this server.

        In a DNS rebinding attack, Host contains the attacker's name. For an image or a script of a page, a browser
        sends no Origin, but Sec-Fetch-Site; it is `none` if the user has entered the address.
        """
        names = {self.address} if self.is_for_page else set(_HOSTS)
        allowed = {f"{name}:{self.port}" for name in names} | (names if self.port == _HTTP_PORT else set())
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in allowed:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"Host is {_quoted(hosts)}, which is not this agent's address",
                hint=f"use http://{self.address}:{self.port}/",
                close=True,
            )
        origins = request.headers.getall("Origin", [])
        if origins and origins != [f"http://{hosts[0].lower()}"]:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"Origin is {_quoted(origins)}: requests from other sites are refused",
                hint="use a program on this machine",
                close=True,
            )
        sites = request.headers.getall("Sec-Fetch-Site", [])
        if not _OWN_SITES.issuperset(sites):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"Sec-Fetch-Site is {_quoted(sites)}: requests from other sites are refused",
                hint="use a program on this machine",
                close=True,
            )

    def has_token(self, bearer: str) -> bool:
        """Return whether this is the token of the port."""
        given = bearer.encode(errors="surrogateescape")
        return bool(self.token) and hmac.compare_digest(given, self.token.encode())


def bearer_of(request: web.BaseRequest) -> str:
    """Return the bearer token of a request, "" if it has none."""
    given = request.headers.getall("Authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def no_access(request: web.BaseRequest, rules: LoopbackRules) -> Problem:
    """Return the problem of a request without a valid token or session."""
    detail = "it is not valid (any more)" if "Authorization" in request.headers else "there is none in the request"
    if rules.is_for_page:
        return unauthorized(f"requests over this port need a session of the page: {detail}")
    return unauthorized(
        f"this request needs a token over this port: {detail}",
        hint="send Authorization: Bearer TOKEN, with the value of akosha_agent_http_token or, if that is not set, the "
        "content of http-token in the state directory",
    )


def unauthorized(detail: str, *, hint: str = "akosha-agent open") -> Problem:
    """Return a problem with the status 401."""
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        detail,
        hint=hint,
        headers={"WWW-Authenticate": 'Bearer realm="akosha-agent"'},
        close=True,
    )


def load_or_create_token(directory: Path) -> str:
    """Return the token in the directory. If there is no valid one, create it, readable only by this user.

    The caller must hold the directory's lock. Raises OSError.
    """
    path = directory / TOKEN_FILE
    try:
        token = fs.read_own(path, _MAX_TOKEN_BYTES, private=True).decode("ascii", "replace").strip()
        if _TOKEN.fullmatch(token):
            return token
        reason = "it does not contain a valid token"
    except FileNotFoundError:
        reason = ""
    except ValueError as error:
        reason = str(error)
    if reason:
        _log.warning("http_token_replaced", path=str(path), reason=reason)
    token = secrets.token_urlsafe(32)
    fs.write_atomically(path, f"{token}\n".encode(), sole_writer=True)
    return token


def _quoted(texts: list[str]) -> str:
    return ", ".join(repr(text[:80]) for text in texts[:3]) or "missing"
