"""What happens to the machine."""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Protocol


class NetworkChange(StrEnum):
    """What may have made every connection a dead one."""

    WOKE = "the machine woke up"
    MOVED = "the network changed"


class NetworkMonitor(Protocol):
    """Notices that the machine slept, or came into another network."""

    def upheavals(self) -> AsyncGenerator[NetworkChange, None]:
        """Yield each a few seconds after it happened, at the latest. Never ends by itself, never raises."""
        ...


class Connected(Protocol):
    """Keeps connections for later use."""

    async def drop_idle_connections(self) -> None:
        """Close those that nothing uses now: they may be dead. Takes at most a second; never raises."""
        ...
