"""A proxy for a NATS server that counts the commands of its clients."""

from tests.bench.counting_proxy import CountingProxy, Listener

_END = b"\r\n"
_MESSAGES = (b"PUB ", b"HPUB ")


class NatsCountingProxy(CountingProxy):
    """Counts the commands of all clients: messages that they publish, pings, and answers to pings."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.commands = self.messages = self.pings = self.pongs = 0

    def _listener(self) -> Listener:
        return Commands(self)

    def count(self, command: bytes) -> None:
        """Count a command."""
        self.commands += 1
        self.messages += command.startswith(_MESSAGES)
        self.pings += command.upper() == b"PING"
        self.pongs += command.upper() == b"PONG"


class Commands:
    """Parses the commands of one client and skips their payloads."""

    def __init__(self, proxy: NatsCountingProxy) -> None:
        self._proxy, self._rest, self._payload = proxy, b"", 0

    def __call__(self, piece: bytes) -> None:
        self._rest += piece
        while True:
            skipped = min(self._payload, len(self._rest))
            self._rest, self._payload = self._rest[skipped:], self._payload - skipped
            command, end, rest = self._rest.partition(_END)
            if self._payload or not end:
                return
            self._rest = rest
            if command.startswith(_MESSAGES):
                self._payload = int(command.rpartition(b" ")[2]) + len(_END)
            self._proxy.count(command)
