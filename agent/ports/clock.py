"""Time."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time. Limits on an operation (`asyncio.timeout`) run on the loop's own monotonic clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. It may jump either way."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds; at once where they are not positive."""
        ...
