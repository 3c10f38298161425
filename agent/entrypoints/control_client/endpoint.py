"""Where the agent listens, and when to try there once more."""

import asyncio
from typing import TYPE_CHECKING

from agent.adapters.unix_http import CONTROL_SOCKET, is_own_socket
from agent.bootstrap.home import LEDGER_EVENT_BYTES, Home
from agent.domain.errors import AkoshaError

if TYPE_CHECKING:
    from agent.entrypoints.control_client.client import ControlClient

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 5.0
"""How long a door that did not open is left alone: the first, doubling to the last."""


class NoAnswer(AkoshaError):  # noqa: N818 - it says the state of the world
    """The agent cannot be asked, or not this. `silent`: it is there, and says nothing."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message, transient=True)
        self.silent = silent


class Endpoint:
    """The socket in a home's state directory, for one who may come more than once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._pause, self._not_before = 0.0, 0.0

    async def client(self) -> "ControlClient | None":
        """Return a client, to be entered; None where there is no socket of ours.

        Also None for a while after `failed`. Loads httpx2 where there is a socket.
        """
        if self._home.clock.monotonic() < self._not_before:
            return None
        return await asyncio.to_thread(_client, self._home)

    def failed(self) -> None:
        """Nobody answered, or a connection broke: the door is left alone for a while."""
        self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
        self._not_before = self._home.clock.monotonic() + self._pause

    def opened(self) -> None:
        """It answered: if it breaks now, that is a first failure."""
        self._pause = 0.0


def _client(home: Home) -> "ControlClient | None":
    path = home.state.path.absolute() / CONTROL_SOCKET
    if not is_own_socket(path):
        return None
    from agent.entrypoints.control_client.client import ControlClient  # noqa: PLC0415 - it loads httpx2

    # What the agent itself wrote into its ledger can be read here: the codec of the bus takes less.
    codec = type(home.codec)(max_bytes=LEDGER_EVENT_BYTES)
    return ControlClient(path, codec)
