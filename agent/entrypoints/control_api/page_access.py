"""Access to the page: its port, and its sessions.

The page is served at the port of the settings, or else at a port of its own, which is open while a session or a
one-time token is valid.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus

import structlog

from agent.application.signal import Signal
from agent.entrypoints.control_api.auth import ADDRESS
from agent.entrypoints.control_api.connection import Connection, LoopbackListener
from agent.entrypoints.control_api.problems import Problem
from agent.entrypoints.control_api.tcp_peer import is_of_this_user
from agent.entrypoints.page.sessions import PageSessions
from agent.ports import Clock

CHECK_SECONDS = 900.0
"""Maximum time between two checks whether a session is left: the clock that waits stops while the machine sleeps."""

_log = structlog.get_logger()


class PageAccess:
    """Opens the page. `listen` opens a loopback port (0: any that is free) whose requests need a session.

    `settings_port` is the port of the settings once that is open.
    """

    def __init__(
        self, sessions: PageSessions, clock: Clock, listen: Callable[[int], Awaitable[LoopbackListener]]
    ) -> None:
        self._sessions, self._listen = sessions, listen
        self._listener: LoopbackListener | None = None
        self._changing = asyncio.Lock()
        self._started = Signal(clock, "page-port")
        self._waiting: asyncio.Task[None] | None = None
        self._refused = False
        self.settings_port = 0

    async def resume(self) -> None:
        """Open the page of an earlier agent at its port again, if one of its sessions has not ended."""
        await self._sessions.load()
        if self.settings_port or not self._sessions.seconds_left():
            return
        port = self._sessions.port
        try:
            async with self._changing:
                await self._open_port(port)
        except OSError as error:
            hint = "akosha-agent open opens the page at another port"
            _log.warning("page_port_unavailable", port=port, error=error.strerror or str(error), hint=hint)

    async def open(self) -> str:
        """Return the address of the page, with a new one-time token. Raises OSError if no port can be opened."""
        async with self._changing:
            port = self.settings_port
            token = self._sessions.issue_token()
            if not port:
                port = (self._listener or await self._open_port(0)).rules.port
            self._sessions.port = port
        return f"http://{ADDRESS}:{port}/#token={token}"

    async def start_session(self, token: str) -> tuple[str, datetime] | None:
        """Start a session with a one-time token: return its secret and its end. None if the token is not valid."""
        started = await self._sessions.start(token)
        self._started.set()
        return started

    def proof(self, session_id: str, text: str) -> str | None:
        """Return the proof that the agent knows a session; see `PageSessions.proof`."""
        return self._sessions.proof(session_id, text)

    async def use_session(self, bearer: str, connection: Connection) -> bool:
        """Return whether this is the secret of a session that has not ended; if so, it is in use.

        Raises Problem (403) if another user's process has sent it.
        """
        if not self._sessions.is_valid(bearer):
            return False
        await self.check_peer(connection)
        await self._sessions.use(bearer)
        return True

    async def check_peer(self, connection: Connection) -> None:
        """Raise Problem (403) if another user's process is at the other end: it has stolen a token or a session."""
        if connection.rules is None:
            return
        if connection.has_own_peer is None:
            transport = connection.transport
            client = transport.get_extra_info("peername") if transport else None
            if client is None:
                raise ConnectionResetError("the client has disconnected")
            server = ADDRESS, connection.rules.port
            connection.has_own_peer = await asyncio.to_thread(is_of_this_user, client, server)
        if not connection.has_own_peer:
            if not self._refused:  # once: others must not fill the log
                self._refused = True
                _log.warning("page_peer_refused", reason="only processes of this user may use the page")
            raise Problem(HTTPStatus.FORBIDDEN, "only processes of the agent's user may use the page", close=True)

    async def aclose(self) -> None:
        """Close the page's own port."""
        if self._waiting is not None:
            self._waiting.cancel()
            with suppress(asyncio.CancelledError):
                await self._waiting
        if self._listener is not None:
            self._listener.close()
        await self._sessions.save_uses()

    async def _open_port(self, port: int) -> LoopbackListener:
        self._listener = listener = await self._listen(port)
        self._waiting = asyncio.create_task(self._close_unused(), name="page-port")
        _log.info("page_port_open", address=f"http://{ADDRESS}:{listener.rules.port}/")
        return listener

    async def _close_unused(self) -> None:
        """Close the page's own port when no session and no token is left."""
        while True:
            async with self._changing:
                left = self._sessions.seconds_left()
                if not left and self._listener is not None:
                    port = self._listener.rules.port
                    self._listener.close()
                    self._listener.close_connections()
                    self._listener = None
                    _log.info("page_port_closed", port=port)
                    break
            await self._started.wait(min(left, CHECK_SECONDS))  # a new session may end before the token would have
        await self._sessions.save()
