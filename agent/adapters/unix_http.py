"""HTTP over the agent's control socket, a Unix socket. Clients and the server use this module.

Importing it loads only the standard library; `http_client` loads httpx2, and `request` loads http.client.
"""

import os
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from agent import __version__
from agent.domain.parsing import parse_json

if TYPE_CHECKING:
    import httpx2

CONTROL_SOCKET = "control.sock"
"""The file name of the control socket in the state directory."""

LONGEST_ADDRESS_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path that fits into `sun_path`, in bytes."""

_SERVER = "akosha-agent"
_USER_AGENT = f"{_SERVER}/{__version__}"
_MAX_HEALTH_BYTES = 64 * 1024
_MAX_TROUBLE_CHARACTERS = 300


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address for `bind` or `connect` to a socket's path. It is valid within the block.

    If the path is too long for an address, the address goes through a file descriptor of its directory, which works
    only on Linux. Raises OSError if the path is too long elsewhere, or the directory does not exist.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS_BYTES:
        yield str(path)
        return
    if sys.platform != "linux":
        raise OSError(f"the path {path} is longer than the {LONGEST_ADDRESS_BYTES} bytes of a socket's address")
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def is_own_socket(path: Path) -> bool:
    """Return whether the path is a socket that this user owns. Links are not followed."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid()


@dataclass(frozen=True, slots=True)
class Response:
    """A response. The names in `headers` are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request(
    path: Path,
    method: str,
    target: str,
    *,
    seconds: float,
    max_bytes: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Send one request to a socket and return the response. Blocks.

    Raises TimeoutError if the response is not complete within `seconds`. Raises other OSErrors if nothing listens on
    the socket, the response is not HTTP, or its body is larger than `max_bytes`.
    """
    import http.client  # noqa: PLC0415 - takes 20 ms, and is not needed without a running agent

    deadline = time.monotonic() + seconds
    connection = http.client.HTTPConnection("localhost")
    with closing(connection), socket_address(path) as address:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(seconds)
        connection.sock.connect(address)
        try:
            connection.request(method, target, body or None, {"User-Agent": _USER_AGENT, **(headers or {})})
            response = connection.getresponse()
            with closing(response):
                received = bytearray()
                while piece := response.read1(max_bytes + 1):
                    received += piece
                    if len(received) > max_bytes:
                        raise OSError(f"the response to {target} is larger than {max_bytes} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the response to {target} is not complete within {seconds:g} s")
        except http.client.HTTPException as error:
            raise OSError(f"the response is not HTTP ({type(error).__name__})") from error
    received_headers = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, received_headers, bytes(received))


def http_client(address: str) -> "httpx2.AsyncClient":
    """Return a client that connects only to a socket's address.

    It ignores proxies and environment variables, follows no redirects and has no timeouts.
    """
    import logging  # noqa: PLC0415
    import ssl  # noqa: PLC0415

    import httpx2  # noqa: PLC0415 - takes 0.15 s

    for name in ("httpx2", "httpcore2"):  # both log each request at INFO
        if (logger := logging.getLogger(name)).level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
    # The connection is not encrypted: an empty context avoids loading the certificate authorities.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.AsyncClient(
        base_url="http://localhost",
        headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
        transport=httpx2.AsyncHTTPTransport(uds=address, verify=context, trust_env=False),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(None),
    )


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """The health of a running agent. `version` is "" if unknown; `trouble` is "" if the agent is healthy."""

    version: str
    trouble: str


def agent_health(state_dir: Path, seconds: float) -> AgentHealth | None:
    """Return the health of a state directory's agent; None if there is no control socket. Blocks. Raises OSError."""
    path = state_dir / CONTROL_SOCKET
    if not path.is_socket():
        return None
    response = request(path, "GET", "/healthz", seconds=seconds, max_bytes=_MAX_HEALTH_BYTES)
    name, _, version = response.headers.get("server", "").partition("/")
    trouble = ""
    if response.status != HTTPStatus.OK:
        trouble = _trouble(response.body) or f"HTTP status {response.status}"
    return AgentHealth(version if name == _SERVER else "", trouble)


def _trouble(body: bytes) -> str:
    try:
        trouble = parse_json(body)["trouble"]
        return "; ".join(f"{name}: {reason}" for name, reason in trouble.items())[:_MAX_TROUBLE_CHARACTERS]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
