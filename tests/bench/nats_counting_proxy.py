"""A proxy before a NATS server that knows what its clients ask."""

from tests.bench.counting_proxy import CountingProxy, Listener

_END = b"\r\n"
_TO_JETSTREAM = (b"PUB $JS.API.", b"HPUB $JS.API.")


class NatsCountingProxy(CountingProxy):
    """Counts clients' requests to JetStream (acks are none) and their pings, over all connections."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.requests = self.pings = 0

    def _listener(self) -> Listener:
        return Commands(self)

    def count(self, command: bytes) -> None:
        """Take note of a command."""
        self.requests += command.startswith(_TO_JETSTREAM)
        self.pings += command.upper() == b"PING"


class Commands:
    """Passes on the commands in what one client sends; what is published with them is passed over."""

    def __init__(self, proxy: NatsCountingProxy) -> None:
        self._proxy, self._rest, self._payload = proxy, b"", 0

    def __call__(self, piece: bytes) -> None:
        self._rest += piece
        while True:
            passed = min(self._payload, len(self._rest))
            self._rest, self._payload = self._rest[passed:], self._payload - passed
            command, end, rest = self._rest.partition(_END)
            if self._payload or not end:
                return
            self._rest = rest
            if command.startswith((b"PUB ", b"HPUB ")):
                self._payload = int(command.rpartition(b" ")[2]) + len(_END)
            self._proxy.count(command)
