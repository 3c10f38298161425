"""Two buses as one: the distant one while it is there, the local one while it is not.

Requests and session ends go to the bus that is there when they are published, and stay on it: they are disposable, for
the files are the truth. Results go to the remote bus only, even if they have to wait for it: only that reaches other
machines.
"""

import asyncio
from collections.abc import Callable

import structlog

from agent.domain.errors import BusError
from agent.domain.events import Event, SyncResult
from agent.ports import BusState, EventBus, Handler, Message, StreamMark, Subscription, reset_clients

_log = structlog.get_logger()


class FailoverBus:
    """`agent.ports.EventBus` over two others, which it owns. `still_here_seconds`: a third of their ack wait."""

    def __init__(self, distant: EventBus, local: EventBus, *, still_here_seconds: float) -> None:
        self._distant, self._local, self._still_here = distant, local, still_here_seconds

    @property
    def state(self) -> BusState:
        """The one in use; the local one's detail says why the other is not."""
        distant = self._distant.state
        if distant.ready:
            return distant
        return BusState(
            self._local.state.name, ready=True, detail=f"in this process: {distant.detail}", since=distant.since
        )

    @property
    def stream(self) -> StreamMark | None:
        return self._distant.stream

    def on_change(self, listener: Callable[[], None]) -> None:
        self._distant.on_change(listener)

    async def wait_until_ready(self) -> None:
        """It always is: there is the local one."""

    def check_connection(self) -> None:
        self._distant.check_connection()
        self._local.check_connection()

    async def reset_client(self) -> None:
        """As `Reconnectable` says, for those of the two that keep a client."""
        await reset_clients(self._distant, self._local)

    async def publish(self, event: Event) -> None:
        if isinstance(event, SyncResult):
            await self._distant.publish(event)
            return
        if self._distant.state.ready:
            try:
                await self._distant.publish(event)
            except BusError as error:
                if not error.transient:
                    raise
                # It may have arrived all the same: a subscriber that receives it twice finds it done.
                _log.info("event_kept_local", id=event.id, subject=event.subject, reason=str(error))
            else:
                return
        await self._local.publish(event)

    async def subscribe(self, pattern: str, handler: Handler, *, durable: str | None = None) -> Subscription:
        """As the port says, to both; one event at a time over the two."""
        one_at_a_time = asyncio.Lock()

        async def handle(message: Message) -> None:
            await self._turn(one_at_a_time, message)
            try:
                await handler(message)
            finally:
                one_at_a_time.release()

        local = await self._local.subscribe(pattern, handle, durable=durable)
        try:
            distant = await self._distant.subscribe(pattern, handle, durable=durable)
        except BaseException:
            await local.stop()
            raise
        return _Both(local, distant)

    async def aclose(self) -> None:
        await asyncio.gather(self._local.aclose(), self._distant.aclose())

    async def _turn(self, lock: asyncio.Lock, message: Message) -> None:
        """Take the lock; a long wait for it does not count as silence."""
        while True:
            try:
                async with asyncio.timeout(self._still_here):
                    await lock.acquire()
            except TimeoutError:
                await message.in_progress()
            else:
                return


class _Both:
    """A subscription to two buses."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self._subscriptions = subscriptions

    async def stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in self._subscriptions))
