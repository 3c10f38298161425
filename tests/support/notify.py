"""What systemd hears of a process: the socket that NOTIFY_SOCKET names."""

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 180.0


class Notify:
    """Datagrams as they come, each as its assignments: {"READY": "1", ...}."""

    def __init__(self, listening: socket.socket, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = listening

    def wait(self, wanted: Callable[[dict[str, str]], object], *, since: int = 0) -> dict[str, str]:
        """Return the first datagram from the `since`th on that is as wanted, as soon as it is there."""
        deadline = time.monotonic() + TIMEOUT
        at = since
        while True:
            while at < len(self.heard):
                if wanted(self.heard[at]):
                    return self.heard[at]
                at += 1
            assert self._receive(deadline - time.monotonic()), self.heard

    def gather(self) -> list[dict[str, str]]:
        """Return all that has been told so far."""
        while self._receive(0.0):
            pass
        return self.heard

    def _receive(self, seconds: float) -> bool:
        self._socket.settimeout(max(seconds, 0.0))
        try:
            data = self._socket.recv(8192).decode()
        except (TimeoutError, BlockingIOError):
            return False
        self.heard.append(dict(line.split("=", 1) for line in data.splitlines()))
        return True


@contextmanager
def notified() -> Iterator[Notify]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):  # a short path: a socket's has a limit
        address = str(Path(folder) / "notify")
        listening.bind(address)
        yield Notify(listening, address)
