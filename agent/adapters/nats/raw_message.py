"""A message in hand: `agent.ports.dispatch.Letter`."""

from collections.abc import Awaitable, Callable

import structlog
from nats.aio.msg import Msg

from agent.adapters.nats.errors import translated
from agent.domain.errors import BusError
from agent.domain.events import Event

ACK_SECONDS = 5.0

_log = structlog.get_logger()


class JetStreamMessage:
    """What cannot be told to the server (the connection is lost) is no failure: the message comes again."""

    def __init__(self, event: Event, message: Msg) -> None:
        self.event, self._message = event, message
        self.acked = False
        """Whether the server has confirmed the ack."""

    async def ack(self) -> None:
        """Acknowledge, and see that the server has heard."""
        self.acked = await self._told("ack", lambda: self._message.ack_sync(timeout=ACK_SECONDS))

    async def nak(self, delay: float) -> None:
        await self._told("nak", lambda: self._message.nak(delay))

    async def in_progress(self) -> None:
        await self._told("in_progress", self._message.in_progress)

    async def _told(self, what: str, telling: Callable[[], Awaitable[object]]) -> bool:
        try:
            with translated(f"{what} of an event"):
                await telling()
        except BusError as error:
            _log.debug("settling_unheard", what=what, id=self.event.id, error=str(error), then="the event comes again")
            return False
        return True


class CoreMessage:
    """An event that no stream keeps: there is nobody to settle it with."""

    def __init__(self, event: Event) -> None:
        self.event = event

    async def ack(self) -> None:
        pass

    async def nak(self, delay: float) -> None:
        pass

    async def in_progress(self) -> None:
        pass
