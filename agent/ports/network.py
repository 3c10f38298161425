"""Network changes, and components that must react to them."""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Protocol, runtime_checkable


class NetworkChange(StrEnum):
    """An event after which connections may be dead."""

    WOKE = "the machine woke up"
    MOVED = "the network changed"


class NetworkMonitor(Protocol):
    """Detects that the machine slept or changed its network."""

    def changes(self) -> AsyncGenerator[NetworkChange, None]:
        """Yield each change within a few seconds. Never ends by itself, never raises."""
        ...


@runtime_checkable
class Connected(Protocol):
    """A component that keeps connections for later use."""

    async def drop_idle_connections(self) -> None:
        """Close unused connections, because they may be dead. Takes at most a second; never raises."""
        ...


@runtime_checkable
class Reconnectable(Protocol):
    """A component with a client that was built from the credentials, certificates or tokens of that time."""

    async def reset_client(self) -> None:
        """Discard the client: the next call builds a new one, and reads files and credential sources again.

        Running calls finish on the old client, which is closed after the last of them, or fail with a transient error.
        Takes at most a second and does not wait for the new client. Never raises; idempotent.
        """
        ...


async def reset_clients(*components: object) -> None:
    """Reset the client of each component that is `Reconnectable`."""
    for component in components:
        if isinstance(component, Reconnectable):
            await component.reset_client()
