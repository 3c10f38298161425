"""Dispatches messages to a handler, in the same way on every bus: one at a time, with a time limit, nak after an error.

This implements what `EventBus` promises to handlers. The bus adapters only fetch and settle messages.
"""

import asyncio
from typing import Protocol

import structlog

from agent.domain.events import Event
from agent.ports.bus import Handler
from agent.ports.system import Clock

FIRST_ERROR_DELAY_SECONDS = 0.1
LAST_ERROR_DELAY_SECONDS = 30.0
"""Delay before a failed event is delivered again: the first, doubled for each failure up to the last."""

CANCEL_SECONDS = 10.0
"""How long the dispatcher waits for a cancelled handler to clean up."""

_log = structlog.get_logger()


class RawMessage(Protocol):
    """A bus's message for one subscription. `ack` or `nak` is called at most once, `in_progress` repeatedly."""

    @property
    def event(self) -> Event: ...

    async def ack(self) -> None: ...

    async def nak(self, delay: float) -> None: ...

    async def in_progress(self) -> None: ...


class _Delivery:
    """One delivery of a message: `agent.ports.Message`. Only the first `ack` or `nak` has an effect."""

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
    """Passes the messages of the subscription `name` to its handler.

    A handler must report progress or end within `ack_wait_seconds`. The caller dispatches one message at a time.
    """

    def __init__(self, name: str, handler: Handler, *, clock: Clock, ack_wait_seconds: float) -> None:
        self._name, self._handler, self._clock, self._ack_wait = name, handler, clock, ack_wait_seconds
        self._failing, self._failures = "", 0

    async def dispatch(self, message: RawMessage) -> None:
        """Run the handler until the message is settled: by the handler, or by a nak if it failed or timed out.

        On cancellation it cancels the handler, waits up to 10 s for its end, and naks a message that is not settled.
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
        """Wait until the handler ends. Return False if it reports no progress for the ack wait."""
        while True:
            remaining = delivery.active_at + self._ack_wait - self._clock.monotonic()
            if remaining <= 0:
                return False
            timer = asyncio.create_task(self._clock.sleep(remaining), name=f"{work.get_name()}-timer")
            try:
                await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
            if work.done():
                return True

    def _next_delay(self, event_id: str) -> float:
        """Return the delay before a failed event is delivered again, longer with each consecutive failure."""
        self._failures = self._failures + 1 if event_id == self._failing else 1
        self._failing = event_id
        return min(FIRST_ERROR_DELAY_SECONDS * 2.0 ** min(self._failures - 1, 20), LAST_ERROR_DELAY_SECONDS)


async def _handle(handler: Handler, delivery: _Delivery) -> None:
    await handler(delivery)


async def _cancel(work: asyncio.Task[None], log: structlog.typing.FilteringBoundLogger) -> None:
    """Cancel a handler and wait for its end, even if cancelled meanwhile; give up after `CANCEL_SECONDS`."""
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
