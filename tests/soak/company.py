"""Who is with the agent all the time: somebody who reads its events, and somebody who asks for its metrics."""

import http.client
import json
import socket
import threading
import time
from pathlib import Path
from typing import Self

BACK_WITHIN_SECONDS = 30.0
"""How long the socket may be away, while the agent is built anew."""

_SILENCE_SECONDS = 45.0
_PAUSE_SECONDS = 0.1


class ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket; nothing of the agent's is in it."""

    def __init__(self, place: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))


def asked(place: Path, path: str) -> bytes:
    """Return what a GET brings, asked again where nobody listens for a moment. Raises OSError, RuntimeError."""
    deadline = time.monotonic() + BACK_WITHIN_SECONDS
    while True:
        connection = ControlConnection(place, _SILENCE_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
            continue
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
        return body


class Reader:
    """Attached to the events from the first on; comes back with the last id where the stream ends, as browsers do.

    `results` counts them by outcome. `wrong` is what should not have been: a place that was skipped or came twice, a
    silence, a socket that stays away.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._last = place, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self.results: dict[str, int] = {}
        self.progress = self.returns = 0
        self.wrong = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_SILENCE_SECONDS)

    def _read(self) -> None:
        away = time.monotonic()
        while not self._over.is_set() and not self.wrong:
            connection = ControlConnection(self._place, _SILENCE_SECONDS)
            try:
                connection.request("GET", "/v1/events", headers={"Last-Event-ID": str(self._last)})
                answer = connection.getresponse()
                if answer.status == http.client.OK:
                    self._take(answer)
                    self.returns += 1
                    away = time.monotonic()
            except TimeoutError:
                self.wrong = f"silence for {_SILENCE_SECONDS:g} s: not even a sign of life"
            except (OSError, http.client.HTTPException):
                if time.monotonic() - away > BACK_WITHIN_SECONDS:
                    self.wrong = f"the socket stays away for {BACK_WITHIN_SECONDS:g} s"
            finally:
                connection.close()
            self._over.wait(_PAUSE_SECONDS)

    def _take(self, stream: http.client.HTTPResponse) -> None:
        fields: dict[str, str] = {}
        while not self._over.is_set() and (line := stream.readline()):
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
        place = int(fields["id"])
        if place != self._last + 1:
            self.wrong = f"after place {self._last} comes {place}"
        self._last = place
        kind = json.loads(fields["data"])["type"].split(".")[2]
        self.results[kind] = self.results.get(kind, 0) + 1
