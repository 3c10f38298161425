"""Wait for an event or a timeout, whichever comes first."""

import asyncio

from agent.ports import Clock


class Signal:
    """An event that a loop waits for. A `set` before the wait is kept; several of them count as one."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._event = asyncio.Event()
        self._chained: list[Signal] = []

    def set(self) -> None:
        """Wake the waiting loop and the loops of all chained signals."""
        self._event.set()
        for other in self._chained:
            other.set()

    def chain(self, other: "Signal") -> None:
        """Set `other` whenever this signal is set."""
        self._chained.append(other)

    async def wait(self, seconds: float | None) -> bool:
        """Return True once the signal is set, False after `seconds`. None means no timeout."""
        if seconds is None:
            await self._event.wait()
        elif not self._event.is_set() and seconds > 0:
            event = asyncio.create_task(self._event.wait(), name=f"{self._name}-signal")
            timer = asyncio.create_task(self._clock.sleep(seconds), name=f"{self._name}-timer")
            try:
                await asyncio.wait({event, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                event.cancel()
                timer.cancel()
                await asyncio.gather(event, timer, return_exceptions=True)
        was_set = self._event.is_set()
        self._event.clear()
        return was_set
