"""Access to the page: its sessions, and its address and port, which are open while a session or a token is valid.

A service worker that a server registers in a browser answers for all later servers at the same address and port. So the
page is at a random address of 127.0.0.0/8, at which no other server was before.
"""

import asyncio
import errno
import secrets
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
    """Opens the page. `listen` listens at a loopback address and port (0: any that is free), for the page only."""

    def __init__(
        self, sessions: PageSessions, clock: Clock, listen: Callable[[str, int], Awaitable[LoopbackListener]]
    ) -> None:
        self._sessions, self._listen = sessions, listen
        self._listener: LoopbackListener | None = None
        self._changing = asyncio.Lock()
        self._started = Signal(clock, "page-port")
        self._waiting: asyncio.Task[None] | None = None
        self._refused = self._closed = False

    async def resume(self) -> None:
        """Open the page of an earlier agent at its address again, if one of its sessions has not ended.

        If another program has the port, the sessions end: that program may have received them.
        """
        await self._sessions.load()
        if self._sessions.seconds_left():
            address, port = self._sessions.address, self._sessions.port
            try:
                async with self._changing:
                    await self._open_port(address, port)
                return
            except OSError as error:
                self._sessions.end_all()
                reason, hint = error.strerror or str(error), "akosha-agent open opens the page at another address"
                _log.warning("page_port_unavailable", address=f"http://{address}:{port}/", error=reason, hint=hint)
        await self._sessions.save()

    async def open(self) -> str:
        """Return the address of the page, with a new one-time token.

        Raises OSError if no port can be opened, Problem (503) after `aclose`.
        """
        async with self._changing:
            if self._closed:
                detail, hint = "the running agent is about to end", "run akosha-agent open again in a few seconds"
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, hint=hint)
            token = self._sessions.issue_token()
            rules = (self._listener or await self._open_new_port()).rules
            self._sessions.address, self._sessions.port = rules.address, rules.port
        return f"http://{rules.address}:{rules.port}/#token={token}"

    async def start_session(self, token: str) -> tuple[str, datetime] | None:
        """Start a session with a one-time token: return its secret and its end. None if the token is not valid."""
        started = await self._sessions.start(token)
        self._started.set()
        return started

    def proof(self, session_id: str, text: str) -> str | None:
        """Return the proof that the agent knows a session; see `PageSessions.proof`."""
        return self._sessions.proof(session_id, text)

    def is_valid(self, bearer: str) -> bool:
        """Return whether this is the secret of a session that has not ended. This is no use of the session."""
        return self._sessions.is_valid(bearer)

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
            if transport is None or client is None:
                raise ConnectionResetError("the client has disconnected")
            server = connection.rules.address, connection.rules.port
            try:
                connection.has_own_peer = await asyncio.to_thread(is_of_this_user, client, server)
            except ConnectionResetError:
                transport.abort()  # the event loop may not know yet
                raise
        if not connection.has_own_peer:
            if not self._refused:  # once: others must not fill the log
                self._refused = True
                _log.warning("page_peer_refused", reason="only processes of this user may use the page")
            raise Problem(HTTPStatus.FORBIDDEN, "only processes of the agent's user may use the page", close=True)

    async def aclose(self) -> None:
        """Close the page's port. It is not opened again."""
        async with self._changing:
            self._closed = True
            if self._listener is not None:
                self._listener.close()
        if self._waiting is not None:
            self._waiting.cancel()
            with suppress(asyncio.CancelledError):
                await self._waiting
        await self._sessions.save_uses()

    async def _open_new_port(self) -> LoopbackListener:
        try:
            return await self._open_port(random_address(), 0)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return await self._open_port(ADDRESS, 0)  # macOS has no other loopback address

    async def _open_port(self, address: str, port: int) -> LoopbackListener:
        self._listener = listener = await self._listen(address, port)
        self._waiting = asyncio.create_task(self._close_unused(), name="page-port")
        _log.info("page_port_open", address=f"http://{address}:{listener.rules.port}/")
        return listener

    async def _close_unused(self) -> None:
        """Close the page's port when no session and no token is left."""
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


def random_address() -> str:
    """Return a random loopback address, which no well-known server uses."""
    return f"127.{1 + secrets.randbelow(255)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
