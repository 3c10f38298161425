"""The dispatch of messages to a handler, the same on every bus: one event at a time, a time limit, nak after an error.

This implements what `EventBus` promises to handlers. A bus brings messages; how it stores them is its own matter.
"""

import asyncio
from typing import Protocol

import structlog

from agent.domain.events import Event
from agent.ports.bus import Handler
from agent.ports.system import Clock

FIRST_ERROR_DELAY_SECONDS = 0.1
LAST_ERROR_DELAY_SECONDS = 30.0
"""A handler that fails is given its event again after the first, doubling to the last."""

CANCEL_SECONDS = 10.0
"""How long a cancelled handler may clean up before it is left to itself."""

_log = structlog.get_logger()


class RawMessage(Protocol):
    """An event as a bus keeps it for one subscription. Each call is made at most once, but for `in_progress`."""

    @property
    def event(self) -> Event: ...

    async def ack(self) -> None: ...

    async def nak(self, delay: float) -> None: ...

    async def in_progress(self) -> None: ...


class _Delivery:
    """One delivery of a message: `agent.ports.Message`. The first of ack and nak counts."""

    def __init__(self, message: RawMessage, clock: Clock) -> None:
        self._message, self._clock = message, clock
        self.settled = False
        self.active_at = clock.monotonic()

    @property
    def event(self) -> Event:
        return self._message.event

    async def ack(self) -> None:
        if not self.settled:
            self.settled = True
            await self._message.ack()

    async def nak(self, delay: float = 0.0) -> None:
        if not self.settled:
            self.settled = True
            await self._message.nak(max(delay, 0.0))

    async def in_progress(self) -> None:
        if not self.settled:
            self.active_at = self._clock.monotonic()
            await self._message.in_progress()


class MessageDispatcher:
    """Hands the messages of one subscription, `name`, to its handler, which may stay silent for `ack_wait_seconds`.

    The caller brings one at a time.
    """

    def __init__(self, name: str, handler: Handler, *, clock: Clock, ack_wait_seconds: float) -> None:
        self._name, self._handler, self._clock, self._ack_wait = name, handler, clock, ack_wait_seconds
        self._failing, self._failures = "", 0

    async def dispatch(self, message: RawMessage) -> None:
        """Return when the message is settled: by the handler, or by a nak where the handler failed or fell silent.

        Cancelled, it sees the handler end (for up to 10 s) and naks what that has not settled.
        """
        log = _log.bind(subscription=self._name, id=message.event.id, subject=message.event.subject)
        delivery = _Delivery(message, self._clock)
        work = asyncio.create_task(_handle(self._handler, delivery), name=f"bus-{self._name}-handler")
        try:
            in_time = await self._ended(work, delivery)
        except asyncio.CancelledError:
            await _cancel(work, log)
            await asyncio.shield(delivery.nak())
            raise
        if not in_time:
            await _cancel(work, log)
            log.error("handler_silent", ack_wait_seconds=self._ack_wait, acked=delivery.settled)
            await delivery.nak()
            return
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None and delivery.settled:
            self._failures = 0
            return
        delay = None if delivery.settled else self._next_delay(message.event.id)
        log.error("handler_failed", error=repr(error or "neither ack nor nak"), delay_seconds=delay, exc_info=error)
        if delay is not None:
            await delivery.nak(delay)

    async def _ended(self, work: asyncio.Task[None], delivery: _Delivery) -> bool:
        """Wait for the handler's end; False when it reported nothing for the ack wait."""
        while True:
            patience = delivery.active_at + self._ack_wait - self._clock.monotonic()
            if patience <= 0:
                return False
            timer = asyncio.create_task(self._clock.sleep(patience), name=f"{work.get_name()}-timer")
            try:
                await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
            if work.done():
                return True

    def _next_delay(self, event_id: str) -> float:
        """Return when an event comes again whose handling failed: later with each failure in a row."""
        self._failures = self._failures + 1 if event_id == self._failing else 1
        self._failing = event_id
        return min(FIRST_ERROR_DELAY_SECONDS * 2.0 ** min(self._failures - 1, 20), LAST_ERROR_DELAY_SECONDS)


async def _handle(handler: Handler, delivery: _Delivery) -> None:
    await handler(delivery)


async def _cancel(work: asyncio.Task[None], log: structlog.typing.FilteringBoundLogger) -> None:
    """Cancel a handler and see it end, also while being cancelled; one that does not end in time is left to itself."""
    loop = asyncio.get_running_loop()
    end, interrupted = loop.time() + CANCEL_SECONDS, False
    work.cancel()
    while not work.done() and loop.time() < end:
        try:
            await asyncio.wait({work}, timeout=end - loop.time())
        except asyncio.CancelledError:
            interrupted = True
    if not work.done():
        log.error("handler_abandoned", after_seconds=CANCEL_SECONDS)
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    elif not work.cancelled() and (error := work.exception()) is not None:
        log.error("handler_failed", error=repr(error), exc_info=error)
    if interrupted:
        raise asyncio.CancelledError
