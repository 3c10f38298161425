"""The machine's own time."""

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """`agent.ports.Clock` on the operating system's two clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))
