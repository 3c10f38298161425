"""Clients of the agent's control API: a GET with retries, and a reader of the event stream."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

RETRY_SECONDS = 30.0
"""Maximum time without a server, while the agent restarts its components."""

_TIMEOUT_SECONDS = 45.0
_PAUSE_SECONDS = 0.1


class ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket, independent of the agent's code."""

    def __init__(self, socket_path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


def get(socket_path: Path, path: str) -> bytes:
    """GET a path, with retries while the socket is not available; return the body. Raises OSError, RuntimeError."""
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        connection = ControlConnection(socket_path, _TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
            continue
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RuntimeError(f"{path}: {response.status} {body[:200]!r}")
        return body


class Reader:
    """Reads the event stream from the first event; reconnects with the last ID when it ends, as browsers do.

    `results` counts the results by outcome. `error` describes a problem: a missing or repeated position, a timeout, a
    server that is not available. `last`: the position of the last event.

    `connect` returns a connection; each request has the headers.
    """

    def __init__(
        self, connect: Callable[[float], http.client.HTTPConnection], headers: Mapping[str, str] | None = None
    ) -> None:
        self._connect, self._headers, self.last = connect, headers or {}, 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self.results: dict[str, int] = {}
        self.progress = self.reconnects = 0
        self.error = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_TIMEOUT_SECONDS)

    def _read(self) -> None:
        available = time.monotonic()
        while not self._stopping.is_set() and not self.error:
            connection = self._connect(_TIMEOUT_SECONDS)
            try:
                headers = {**self._headers, "Last-Event-ID": str(self.last)}
                connection.request("GET", "/v1/events", headers=headers)
                response = connection.getresponse()
                if response.status == http.client.OK:
                    self._take(response)
                    self.reconnects += 1
                    available = time.monotonic()
            except TimeoutError:
                self.error = f"no event and no keep-alive for {_TIMEOUT_SECONDS:g} s"
            except (OSError, http.client.HTTPException):
                if time.monotonic() - available > RETRY_SECONDS:
                    self.error = f"the server is not available for {RETRY_SECONDS:g} s"
            finally:
                connection.close()
            self._stopping.wait(_PAUSE_SECONDS)

    def _take(self, stream: http.client.HTTPResponse) -> None:
        fields: dict[str, str] = {}
        while not self._stopping.is_set() and (line := stream.readline()):
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            else:
                self._event(fields)
                fields = {}

    def _event(self, fields: dict[str, str]) -> None:
        if "data" not in fields:
            return
        if "id" not in fields:
            self.progress += 1
            return
        position = int(fields["id"])
        if position != self.last + 1:
            self.error = f"position {position} follows position {self.last}"
        self.last = position
        kind = json.loads(fields["data"])["type"].split(".")[2]
        self.results[kind] = self.results.get(kind, 0) + 1
