"""The agent's control socket, with a back-off after failed connections."""

import asyncio
from typing import TYPE_CHECKING

from agent.adapters.unix_http import CONTROL_SOCKET, is_own_socket
from agent.bootstrap.home import Home

if TYPE_CHECKING:
    from agent.entrypoints.control_client.client import ControlClient

MIN_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 5.0
"""Pauses after failures double from the minimum to the maximum."""


class Endpoint:
    """The control socket in the state directory, with a pause after each failure."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._pause, self._not_before = 0.0, 0.0

    async def client(self) -> "ControlClient | None":
        """Return a client to use with `async with`; None during a pause, or if this user has no socket there.

        Imports httpx2 if the socket exists.
        """
        if self._home.clock.monotonic() < self._not_before:
            return None
        return await asyncio.to_thread(_client, self._home)

    def back_off(self) -> None:
        """Start a pause, because the agent was unavailable or the connection broke."""
        self._pause = min(max(self._pause * 2, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        self._not_before = self._home.clock.monotonic() + self._pause

    def reset_pause(self) -> None:
        """Reset the pause to its minimum, because the agent has answered."""
        self._pause = 0.0


def _client(home: Home) -> "ControlClient | None":
    path = home.state.path.absolute() / CONTROL_SOCKET
    if not is_own_socket(path):
        return None
    from agent.entrypoints.control_client.client import ControlClient  # noqa: PLC0415 - imports httpx2

    return ControlClient(path, home.ledger_codec)
