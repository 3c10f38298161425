"""Changes of the network, and components that keep connections or clients."""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Protocol, runtime_checkable


class NetworkChange(StrEnum):
    """What may have made every connection a dead one."""

    WOKE = "the machine woke up"
    MOVED = "the network changed"


class NetworkMonitor(Protocol):
    """Notices that the machine slept, or came into another network."""

    def changes(self) -> AsyncGenerator[NetworkChange, None]:
        """Yield each a few seconds after it happened, at the latest. Never ends by itself, never raises."""
        ...


class Connected(Protocol):
    """Keeps connections for later use."""

    async def drop_idle_connections(self) -> None:
        """Close those that nothing uses now: they may be dead. Takes at most a second; never raises."""
        ...


@runtime_checkable
class Reconnectable(Protocol):
    """Keeps a client that was built from credentials, certificates or tokens as they were at that time."""

    async def reset_client(self) -> None:
        """Discard the client: the next call builds a new one, and reads files and credential sources again.

        Calls that are under way finish on the old client, which is closed after the last of them, or fail as
        transient. Takes at most a second and does not wait for the new client. Never raises; idempotent.
        """
        ...


async def reset_clients(*components: object) -> None:
    """Reset the client of each component that keeps one."""
    for component in components:
        if isinstance(component, Reconnectable):
            await component.reset_client()
