"""Passes events to handlers in the same way on every bus: one at a time, errors logged, cancellation bounded."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import structlog

from agent.domain.events import Event
from agent.ports.bus import Handler

MAX_QUEUED = 1000
"""Events that a volatile subscription keeps for a slow handler; more are discarded."""

FIRST_ERROR_DELAY_SECONDS = 0.1
LAST_ERROR_DELAY_SECONDS = 30.0
"""Delay before a durable bus delivers a failed event again: the first, doubled for each failure up to the last."""

CANCEL_SECONDS = 10.0
"""How long `end_task` waits for a cancelled task to clean up."""

T = TypeVar("T")

_log = structlog.get_logger()


async def run_handler(handler: Handler, event: Event, name: str) -> bool:
    """Run a handler; log its error. Return whether it returned without one.

    If the task was cancelled, CancelledError is raised even if the handler's cleanup failed with another error.
    """
    task = asyncio.current_task()
    try:
        await handler(event)
    except asyncio.CancelledError as cancelled:
        if task is None or task.cancelling():
            raise
        error: BaseException = cancelled  # raised by the handler itself
    except Exception as raised:  # noqa: BLE001 - an error in a handler must not end the subscription
        error = raised
    else:
        return True
    _log.error(
        "handler_failed", subscription=name, id=event.id, subject=event.subject, error=repr(error), exc_info=error
    )
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from error
    return False


def redelivery_delay(failures: int) -> float:
    """Return the seconds before a durable bus delivers an event again that failed `failures` times in a row."""
    return min(FIRST_ERROR_DELAY_SECONDS * 2.0 ** min(failures - 1, 20), LAST_ERROR_DELAY_SECONDS)


async def end_task(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait for its end, even if cancelled meanwhile; give up after `CANCEL_SECONDS`."""
    loop = asyncio.get_running_loop()
    end, interrupted = loop.time() + CANCEL_SECONDS, False
    task.cancel()
    while not task.done() and loop.time() < end:
        try:
            await asyncio.wait({task}, timeout=end - loop.time())
        except asyncio.CancelledError:
            interrupted = True
    if not task.done():
        _log.error("handler_abandoned", subscription=task.get_name(), after_seconds=CANCEL_SECONDS)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    elif not task.cancelled() and (error := task.exception()) is not None:
        _log.error("handler_failed", subscription=task.get_name(), error=repr(error), exc_info=error)
    if interrupted:
        raise asyncio.CancelledError


class HandlerQueue(Generic[T]):
    """A subscription whose items wait for their turn: `handle`, which must not raise, gets one at a time, in order.

    If it is too slow, new items are discarded. `released` is called when the subscription stops.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[T], Awaitable[object]],
        *,
        limit: int = MAX_QUEUED,
        released: Callable[[], object] = lambda: None,
    ) -> None:
        self._name, self._handle, self._limit, self._released = name, handle, limit, released
        self._items: asyncio.Queue[T] = asyncio.Queue(limit)
        self._discards = False
        self._worker = asyncio.create_task(self._run(), name=f"bus-{name}")

    def put(self, item: T) -> None:
        """Add an item. The first one that is discarded since the queue was empty is logged."""
        if self._items.empty():
            self._discards = False
        if not self._items.full():
            self._items.put_nowait(item)
        elif not self._discards:
            self._discards = True
            _log.warning("event_discarded", subscription=self._name, limit=self._limit)

    async def stop(self) -> None:
        """Stop delivery and cancel a running handler. Idempotent."""
        self._released()
        if self._worker is asyncio.current_task():  # the handler stops its own subscription
            self._worker.cancel()
        elif not self._worker.done():
            await end_task(self._worker)

    async def _run(self) -> None:
        while True:
            await self._handle(await self._items.get())
