"""Asks the agent behind the control socket how it is: one request, on plain sockets. Blocks, for a bounded time."""

import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

SOCKET = "control.sock"

_LONGEST = 107 if sys.platform == "linux" else 103
_LARGEST = 64 * 1024
_LONGEST_TEXT = 300


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """What the agent answered: which version it is ("" where it does not tell), and what is stuck, "" if nothing is."""

    version: str
    trouble: str


def ask(folder: Path, seconds: float) -> AgentHealth | None:
    """Return how the agent of a state directory is; None where there is no socket. Raises OSError: no answer."""
    if not (folder / SOCKET).is_socket():
        return None
    with _connected(folder, seconds) as connection:
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            body = answer.read(_LARGEST)
        except http.client.HTTPException as error:
            raise OSError(f"what it answers is no HTTP ({type(error).__name__})") from error
    name, _, version = (answer.getheader("Server") or "").partition("/")
    if answer.status == http.client.OK:
        return AgentHealth(version if name == "akosha-agent" else "", "")
    return AgentHealth(version if name == "akosha-agent" else "", _told(body) or f"it answers {answer.status}")


@contextmanager
def _connected(folder: Path, seconds: float) -> Iterator[http.client.HTTPConnection]:
    """A path that is too long for a socket's goes through a descriptor of its directory, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = str(folder / SOCKET)
        if len(os.fsencode(address)) > _LONGEST:
            address = f"/proc/self/fd/{descriptor}/{SOCKET}"
        connection = http.client.HTTPConnection("localhost", timeout=seconds)
        with closing(connection):
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(seconds)
            connection.sock.connect(address)
            yield connection
    finally:
        os.close(descriptor)


def _told(body: bytes) -> str:
    try:
        trouble = json.loads(body)["trouble"]
        return "; ".join(f"{name}: {why}" for name, why in trouble.items())[:_LONGEST_TEXT]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
