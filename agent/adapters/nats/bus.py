"""The event buses on NATS, between agents, Session-Buddy, the Akosha side and other programs.

One connection serves both. Requests, session ends and progress are plain NATS messages; a server without JetStream
carries them too. The stream AKOSHA_SYNC stores results, which the server confirms, and a copy of the others.
"""

from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.core import NatsVolatileBus, Shared
from agent.adapters.nats.durable import NatsDurableBus
from agent.adapters.nats.errors import translated
from agent.adapters.nats.messages import HEADER_BYTES
from agent.adapters.nats.options import NatsOptions
from agent.domain.errors import BusError
from agent.ports import Clock, Codec

FIRST_ATTEMPT_SECONDS = 1.0
"""How long `first_attempt` waits for NATS."""

MIN_PAYLOAD = 2 * HEADER_BYTES


class NatsBuses:
    """The buses of one connection, which is made in the background from now on. Close them with `aclose`.

    `wait_for_connection`: `publish` of both waits for a connection; otherwise it raises BusError at once if there is
    none. While idle, they have no timer but that of the ping.
    """

    def __init__(self, options: NatsOptions, codec: Codec, *, clock: Clock, wait_for_connection: bool = False) -> None:
        self._connection = NatsConnection(options, prepare=self._prepare, changed=self._changed)
        shared = Shared(options, codec, clock, self._connection, wait_for_connection=wait_for_connection)
        self.volatile, self.durable = NatsVolatileBus(shared), NatsDurableBus(shared)
        self._connection.start()

    async def first_attempt(self) -> None:
        """Return after the first attempt to connect, whether it succeeded or not, or after one second."""
        await self._connection.first_attempt(FIRST_ATTEMPT_SECONDS)

    async def aclose(self) -> None:
        """Close both buses and the connection. Idempotent."""
        await self.volatile.aclose()
        await self.durable.aclose()

    async def _prepare(self, client: Client) -> None:
        """Subscribe on a new connection, before it is used: what is published on it has its receivers."""
        with translated("reading the server's max_payload"):
            if client.max_payload < MIN_PAYLOAD:
                text = f"the server accepts messages of {client.max_payload} bytes only"
                raise BusError(text, hint="raise its max_payload", transient=True)
        await self.volatile.restore(client)

    def _changed(self) -> None:
        self.durable.connection_changed()
        self.volatile.notify()
