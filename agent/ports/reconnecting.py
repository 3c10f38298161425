"""Components that keep a client: credentials, certificates and tokens are read when it is built, and may change."""

from typing import Protocol, runtime_checkable


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
