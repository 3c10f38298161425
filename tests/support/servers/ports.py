"""Ports that are kept while their server is down."""

import socket
from collections.abc import Iterable


class HeldPorts:
    """Binds ports of 127.0.0.1 without listening on them.

    Meanwhile they refuse connections and cannot be assigned to another process, nor to a client that connects to the
    port, which could get the same port as its local port and connect to itself.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def hold(self, ports: Iterable[int]) -> None:
        for port in ports:
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", port))
            self._held.append(held)

    def release(self) -> None:
        while self._held:
            self._held.pop().close()
