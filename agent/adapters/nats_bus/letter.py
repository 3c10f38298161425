"""A message in hand: `agent.ports.delivery.Letter`."""

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsPyError

from agent.adapters.nats_bus.cancelling import kept_cancellable
from agent.domain.events import Event

ACK_SECONDS = 5.0

_log = structlog.get_logger()


class JetStreamLetter:
    """What cannot be told to the server (the connection is lost) is no failure: the message comes again."""

    def __init__(self, event: Event, message: Msg) -> None:
        self.event, self._message = event, message
        self.acked = False
        """Whether the server has confirmed the ack."""

    async def ack(self) -> None:
        """Acknowledge, and see that the server has heard."""
        try:
            with kept_cancellable():
                await self._message.ack_sync(timeout=ACK_SECONDS)
        except (NatsPyError, TimeoutError, OSError) as error:
            self._unheard("ack", error)
        else:
            self.acked = True

    async def nak(self, delay: float) -> None:
        try:
            with kept_cancellable():
                await self._message.nak(delay)
        except (NatsPyError, OSError) as error:
            self._unheard("nak", error)

    async def in_progress(self) -> None:
        try:
            with kept_cancellable():
                await self._message.in_progress()
        except (NatsPyError, OSError) as error:
            self._unheard("in_progress", error)

    def _unheard(self, what: str, error: Exception) -> None:
        _log.debug("settling_unheard", what=what, id=self.event.id, error=repr(error), then="the event comes again")


class PassingLetter:
    """An event that no stream keeps: there is nobody to settle it with."""

    def __init__(self, event: Event) -> None:
        self.event = event

    async def ack(self) -> None:
        pass

    async def nak(self, delay: float) -> None:
        pass

    async def in_progress(self) -> None:
        pass
