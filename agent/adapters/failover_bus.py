"""Combines two buses: a remote bus while it is available, otherwise a local one.

A request or session end goes to the bus that is available when it is published, and stays there: it may be lost,
because the agent finds unsynced files again. Results go to the remote bus only, even if they have to wait for it:
only the remote bus reaches other machines.
"""

import asyncio
from collections.abc import Callable

import structlog

from agent.domain.errors import BusError
from agent.domain.events import Event, SyncResult
from agent.ports import BusState, EventBus, Handler, Message, StreamMark, Subscription, reset_clients

_log = structlog.get_logger()


class FailoverBus:
    """`agent.ports.EventBus` over two others, which it owns and closes.

    `progress_interval_seconds`: how often a message that waits for its turn reports progress; a third of the ack wait.
    """

    def __init__(self, remote: EventBus, local: EventBus, *, progress_interval_seconds: float) -> None:
        self._remote, self._local, self._progress_interval = remote, local, progress_interval_seconds

    @property
    def state(self) -> BusState:
        """The state of the bus in use; if it is the local one, `detail` has the reason."""
        remote = self._remote.state
        if remote.ready:
            return remote
        return BusState(
            self._local.state.name, ready=True, detail=f"in this process: {remote.detail}", since=remote.since
        )

    @property
    def stream(self) -> StreamMark | None:
        return self._remote.stream

    def on_change(self, listener: Callable[[], None]) -> None:
        self._remote.on_change(listener)

    async def wait_until_ready(self) -> None:
        """Return at once: the local bus is always ready."""

    def check_connection(self) -> None:
        self._remote.check_connection()
        self._local.check_connection()

    async def reset_client(self) -> None:
        """Implement `Reconnectable` for the buses that keep a client."""
        await reset_clients(self._remote, self._local)

    async def publish(self, event: Event) -> None:
        if isinstance(event, SyncResult):
            await self._remote.publish(event)
            return
        if self._remote.state.ready:
            try:
                await self._remote.publish(event)
            except BusError as error:
                if not error.transient:
                    raise
                # The event may have arrived nevertheless: a subscriber that receives it twice finds nothing to do.
                _log.info("event_kept_local", id=event.id, subject=event.subject, reason=str(error))
            else:
                return
        await self._local.publish(event)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """Subscribe to both buses; the handler gets one event at a time from the two."""
        lock = asyncio.Lock()

        async def handle(message: Message) -> None:
            await self._acquire(lock, message)
            try:
                await handler(message)
            finally:
                lock.release()

        local = await self._local.subscribe(pattern, handle, durable=durable)
        try:
            remote = await self._remote.subscribe(pattern, handle, durable=durable)
        except BaseException:
            await local.stop()
            raise
        return _BothSubscriptions(local, remote)

    async def aclose(self) -> None:
        await asyncio.gather(self._local.aclose(), self._remote.aclose())

    async def _acquire(self, lock: asyncio.Lock, message: Message) -> None:
        """Acquire the lock; report progress while waiting, so that the bus does not redeliver the message."""
        while True:
            try:
                async with asyncio.timeout(self._progress_interval):
                    await lock.acquire()
            except TimeoutError:
                await message.in_progress()
            else:
                return


class _BothSubscriptions:
    """The subscriptions to both buses."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self._subscriptions = subscriptions

    async def stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in self._subscriptions))
