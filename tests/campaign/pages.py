"""Clients of the agent's page: a browser with tabs, and connections of clients that behave badly."""

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from urllib.parse import urlsplit

import psutil

from tests.campaign.world import World
from tests.soak.clients import ControlConnection, Reader

SECONDS = 30.0
"""Time limit of a request."""

SMALL_SEGMENT_BYTES = 536
JSON = {"Content-Type": "application/json"}

SUCCEEDED = "akosha.sync.succeeded.v1"

NO_ANSWER = 0

Answer = tuple[int, bytes]
"""Status and body."""


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request over a new connection. Raises OSError, HTTPException."""
    with closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()


def position(world: World) -> int:
    """Return the position of the newest event of the history."""
    with closing(ControlConnection(world.machine.state / "control.sock", SECONDS)) as connection:
        connection.request("GET", "/v1/events")
        response = connection.getresponse()
        return next(int(line[4:]) for line in iter(response.readline, b"") if line.startswith(b"id: "))


class Page:
    """The page in a browser, opened as `akosha-agent open` opens it. `tabs` read the events.

    `token` is the one-time token that was exchanged for `session`.
    """

    def __init__(self, world: World, *, tabs: int = 0) -> None:
        control = ControlConnection(world.machine.state / "control.sock", SECONDS)
        address = urlsplit(json.loads(ask(control, "POST", "/v1/page")[1])["url"])
        assert address.hostname is not None
        assert address.port is not None
        self.address = address.hostname, address.port
        self.token = address.fragment.removeprefix("token=")
        status, answer = self.send("POST", "/v1/page/session", json.dumps({"token": self.token}), JSON)
        assert status == http.client.OK, answer
        self.session = json.loads(answer)["session"]
        world.machine.secrets += (self.token, self.session)
        self.bearing = {"Authorization": f"Bearer {self.session}"}
        self.tabs = [world.enter(Tab(self)) for _ in range(tabs)]

    def send(self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request without the session. Raises OSError, HTTPException."""
        return ask(_connection(self.address, SECONDS), method, path, body, headers)

    def get(self, path: str) -> Answer:
        """Send a request of the page; the status is NO_ANSWER if no agent answers."""
        try:
            return self.send("GET", path, headers=self.bearing)
        except (OSError, http.client.HTTPException) as error:
            return NO_ANSWER, str(error).encode()

    def uploads_of_history(self) -> list[str]:
        """Return the IDs of the uploads in the page's history, oldest first."""
        found, before = [], ""
        while before is not None:
            path = f"/v1/history?outcome=succeeded&limit=10{before and f'&before={before}'}"
            document = json.loads(self.get(path)[1])
            found += [entry["upload_id"] for entry in document["entries"] if entry["type"] == SUCCEEDED]
            before = document["next"]
        return found[::-1]


class Tab(Reader):
    """Reads the events and, as the page's script does, the status and the history after each."""

    def __init__(self, page: Page) -> None:
        super().__init__(partial(_connection, page.address), page.bearing)
        self._page = page

    def _event(self, fields: dict[str, str]) -> None:
        super()._event(fields)
        for path in ("/v1/status", "/v1/history") if "id" in fields else ():
            status, answer = self._page.get(path)
            if status not in (NO_ANSWER, http.client.OK):
                self.error = f"{path} was answered with {status} {answer[:200]!r}"


def _connection(address: tuple[str, int], seconds: float) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*address, timeout=seconds)


def unread(page: Page, path: str, *, times: int = 1) -> socket.socket:
    """Request a path of the page so many times, and never read. The buffers of the connection are small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT_BYTES)
    client.connect(page.address)
    host, port = page.address
    head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {page.session}\r\n\r\n"
    client.sendall(head.encode() * times)
    return client


def half_open(page: Page) -> socket.socket:
    """Send the beginning of a request."""
    client = socket.create_connection(page.address)
    client.sendall(b"GET /v1/status HTTP/1.1\r\nHost:")
    return client


def held(world: World, clients: list[socket.socket]) -> int:
    """Return how many of the connections the agent holds open."""
    ports = {client.getsockname()[1] for client in clients}
    connections = psutil.Process(world.pid).net_connections("tcp")
    return sum(1 for one in connections if one.raddr and one.raddr.port in ports)
