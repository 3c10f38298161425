"""Combines two volatile buses: a remote one while it is available, otherwise a local one.

An event goes to the bus that is available when it is published, and stays there. It may be lost with the remote bus,
because the agent finds unsynced files again.
"""

import asyncio
from collections.abc import Callable

import structlog

from agent.domain.errors import BusError
from agent.domain.events import Event
from agent.ports import BusState, Handler, Subscription, VolatileBus

_log = structlog.get_logger()


class FailoverBus:
    """`agent.ports.VolatileBus` over two others, which it owns and closes. Subscriptions receive from both."""

    def __init__(self, remote: VolatileBus, local: VolatileBus) -> None:
        self._remote, self._local = remote, local

    @property
    def state(self) -> BusState:
        """The state of the bus in use; if it is the local one, `detail` has the reason."""
        remote = self._remote.state
        if remote.ready:
            return remote
        return BusState(
            self._local.state.name, ready=True, detail=f"in this process: {remote.detail}", since=remote.since
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        self._remote.on_change(listener)

    async def publish(self, event: Event) -> None:
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

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        """Subscribe to both buses. Each passes one event at a time, so that two handlers may run at once."""
        local = await self._local.subscribe(pattern, handler)
        try:
            remote = await self._remote.subscribe(pattern, handler)
        except BaseException:
            await local.stop()
            raise
        return _BothSubscriptions(local, remote)

    async def aclose(self) -> None:
        await asyncio.gather(self._local.aclose(), self._remote.aclose())


class _BothSubscriptions:
    """The subscriptions to both buses."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self._subscriptions = subscriptions

    async def stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in self._subscriptions))
