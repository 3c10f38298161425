"""A server for NOTIFY_SOCKET: receives what a process sends to systemd."""

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 180.0


class Notify:
    """The received datagrams in order, each as its assignments: {"READY": "1", ...}."""

    def __init__(self, listening: socket.socket, address: str) -> None:
        self.address = address
        self.received: list[dict[str, str]] = []
        self._socket = listening

    def wait(self, wanted: Callable[[dict[str, str]], object], *, since: int = 0) -> dict[str, str]:
        """Wait for a matching datagram, starting with number `since`, and return it."""
        deadline = time.monotonic() + TIMEOUT
        at = since
        while True:
            while at < len(self.received):
                if wanted(self.received[at]):
                    return self.received[at]
                at += 1
            assert self._receive(deadline - time.monotonic()), self.received

    def gather(self) -> list[dict[str, str]]:
        """Return all datagrams received so far."""
        while self._receive(0.0):
            pass
        return self.received

    def _receive(self, seconds: float) -> bool:
        self._socket.settimeout(max(seconds, 0.0))
        try:
            data = self._socket.recv(8192).decode()
        except (TimeoutError, BlockingIOError):
            return False
        self.received.append(dict(line.split("=", 1) for line in data.splitlines()))
        return True


@contextmanager
def notified() -> Iterator[Notify]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):  # in a short path: the path of a socket has a length limit
        address = str(Path(folder) / "notify")
        listening.bind(address)
        yield Notify(listening, address)
