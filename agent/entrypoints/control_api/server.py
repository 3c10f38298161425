"""Server of the control API: one application on the Unix socket and the loopback port."""

import asyncio
import functools
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from aiohttp import web

from agent.adapters.unix_http import CONTROL_SOCKET, socket_address
from agent.application.monitoring.agent_service import AgentService
from agent.application.status_warnings import port_warning
from agent.bootstrap.home import Home
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.control_api.app import ControlApp, Metrics
from agent.entrypoints.control_api.auth import ADDRESS, load_or_create_token
from agent.entrypoints.control_api.connection import Connection, Connections, Limits, LoopbackListener
from agent.entrypoints.control_api.page_access import PageAccess
from agent.entrypoints.page.sessions import PageSessions
from agent.settings import Settings

BACKLOG = 1024
"""Connections that may wait while the event loop is busy; beyond that, a non-blocking client is refused."""

_NEW_SOCKET = "control.new"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """The listening Unix socket, accessible only to this user's processes."""

    path: Path
    listening: socket.socket
    inode: int

    @classmethod
    def open(cls, directory: Path, *, backlog: int) -> Self:
        """Listen at `control.sock` in the directory; replaces the socket of an agent that was killed.

        The caller must hold the directory's lock. Raises OSError.
        """
        path, new = directory / CONTROL_SOCKET, directory / _NEW_SOCKET
        new.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # No client can connect before `listen`, and by then the mode excludes other users.
            with socket_address(new) as address:
                listening.bind(address)
            new.chmod(0o600)
            listening.listen(backlog)
            listening.setblocking(False)
            inode = new.stat().st_ino
            new.rename(path)
        except BaseException:
            listening.close()
            new.unlink(missing_ok=True)
            raise
        return cls(path, listening, inode)

    def close(self) -> None:
        """Stop listening, and remove the file unless another socket has replaced it."""
        self.listening.close()
        with suppress(OSError):  # the state directory may have been deleted
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


class ControlServer:
    """Serves inside an `async with` block; see `agent.entrypoints.control_api.serve`."""

    def __init__(
        self, agent_service: AgentService, settings: Settings, *, state_dir: Path, metrics: Metrics, limits: Limits
    ) -> None:
        self._agent_service, self._settings, self._state_dir = agent_service, settings, state_dir
        clock = Home.of(settings).clock
        self._page_access = PageAccess(PageSessions(state_dir, clock), clock, self._listen)
        self._app = ControlApp(agent_service, settings, metrics=metrics, limits=limits, page_access=self._page_access)
        self._runner = web.AppRunner(self._app.application(), shutdown_timeout=limits.shutdown_seconds)
        self._connections = Connections(limits)
        self._listeners: list[asyncio.Server | LoopbackListener] = []
        self._socket: ControlSocket | None = None

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await self._open_socket()
            problem = None
            if self._settings.agent_http_port:
                problem = await self._open_port(self._settings.agent_http_port)
            await self._agent_service.report_port(problem)
            await self._page_access.resume()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _open_socket(self) -> None:
        try:
            self._socket = await asyncio.to_thread(ControlSocket.open, self._state_dir, backlog=BACKLOG)
        except OSError as error:
            _log.warning(
                "control_socket_unavailable",
                error=str(error),
                hint="set akosha_agent_state_dir to a short path on a local disk; until then the agent only reads "
                "requests from its spool",
            )
            return
        assert self._runner.server is not None
        accept = functools.partial(Connection, self._runner.server, self._connections, rules=None)
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(accept, sock=self._socket.listening, backlog=BACKLOG))
        _log.debug("control_socket_open", path=str(self._socket.path))

    async def _open_port(self, port: int) -> StatusWarning | None:
        """Open the port of the settings. Return a warning if it cannot be opened."""
        token = self._settings.agent_http_token.get_secret_value()
        try:
            token = token or await asyncio.to_thread(load_or_create_token, self._state_dir)
        except OSError as error:
            hint = "set akosha_agent_http_token, or remove http-token from the state directory"
            return _port_unavailable(port, f"no token: {error}", hint)
        try:
            self._listeners.append(await self._listen(ADDRESS, port, token))
        except OSError as error:
            hint = "set akosha_agent_http_port to a free port, or to 0 to disable it"
            return _port_unavailable(port, error.strerror or str(error), hint)
        _log.info("control_port_open", address=f"http://{ADDRESS}:{port}/")
        return None

    async def _listen(self, address: str, port: int, token: str = "") -> LoopbackListener:
        assert self._runner.server is not None
        return await LoopbackListener.open(
            self._runner.server, self._connections, address=address, port=port, token=token, backlog=BACKLOG
        )

    async def _close(self) -> None:
        """Wait briefly for the requests in progress, then close everything."""
        self._connections.closed = True  # the loop may still hand over a connection that was just accepted
        self._app.streams.end()  # first: a page sends its session without a proof while its stream is open
        for listener in self._listeners:
            listener.close()
        await self._page_access.aclose()
        if self._socket is not None:
            await asyncio.to_thread(self._socket.close)
        await self._runner.cleanup()
        await self._app.aclose()


def _port_unavailable(port: int, error: str, hint: str) -> StatusWarning:
    _log.error("control_port_unavailable", port=port, error=error, hint=hint)
    return port_warning(port, error, f"{hint}; then restart the agent")
