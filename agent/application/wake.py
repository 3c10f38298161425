"""Waiting for something to happen, or for a time to come: whichever is first."""

import asyncio

from agent.ports import Clock


class Wake:
    """A bell that a loop waits at. A ring before the waiting is not lost; several rings are one."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._rung = asyncio.Event()
        self._others: list[Wake] = []

    def ring(self) -> None:
        """Let the loop go on at once."""
        self._rung.set()
        for other in self._others:
            other.ring()

    def also(self, other: "Wake") -> None:
        """Ring another bell, of another loop, with this one."""
        self._others.append(other)

    async def wait(self, seconds: float | None) -> bool:
        """Return True when rung, False when so many seconds have passed; None waits for a ring alone."""
        if seconds is None:
            await self._rung.wait()
        elif not self._rung.is_set() and seconds > 0:
            bell = asyncio.create_task(self._rung.wait(), name=f"{self._name}-bell")
            timer = asyncio.create_task(self._clock.sleep(seconds), name=f"{self._name}-timer")
            try:
                await asyncio.wait({bell, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                bell.cancel()
                timer.cancel()
                await asyncio.gather(bell, timer, return_exceptions=True)
        rung = self._rung.is_set()
        self._rung.clear()
        return rung
