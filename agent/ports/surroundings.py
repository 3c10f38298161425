"""What happens to the machine."""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Protocol


class Upheaval(StrEnum):
    """What may have made every connection a dead one."""

    WOKE = "the machine woke up"
    MOVED = "the network changed"


class Surroundings(Protocol):
    """Notices that the machine slept, or came into another network."""

    def upheavals(self) -> AsyncGenerator[Upheaval, None]:
        """Yield each a few seconds after it happened, at the latest. Never ends by itself, never raises."""
        ...


class Connected(Protocol):
    """Keeps connections for later use."""

    async def let_go(self) -> None:
        """Close those that nothing uses now: they may be dead. Takes at most a second; never raises."""
        ...
