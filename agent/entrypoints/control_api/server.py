"""The control API's server: two doors, one table of routes."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Self

import orjson
import structlog
from aiohttp import web

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.entrypoints.control_api.app import ControlApp
from agent.entrypoints.control_api.auth import ADDRESS, LoopbackRules
from agent.entrypoints.control_api.connection import Connections
from agent.entrypoints.control_api.handlers import Handlers
from agent.entrypoints.control_api.limits import Limits
from agent.entrypoints.control_api.route import JSON, Answer, Route
from agent.entrypoints.control_api.routes import ALWAYS, routes
from agent.entrypoints.control_api.socket_file import SocketFile
from agent.entrypoints.control_api.sse import EventReaders
from agent.entrypoints.control_api.token_file import kept_token
from agent.settings import Settings

BACKLOG = 1024
"""Who connects while the loop is busy waits; one that does not block is refused where there is no room."""

_log = structlog.get_logger()


class Server:
    """Serves for as long as it is entered; `agent.entrypoints.control_api.serving` tells the promises."""

    def __init__(
        self,
        agent_service: AgentService,
        settings: Settings,
        *,
        state_dir: Path,
        metrics: Callable[[], Awaitable[tuple[bytes, str]]],
        limits: Limits,
    ) -> None:
        self._settings, self._state_dir, self._limits = settings, state_dir, limits
        self._readers = EventReaders(agent_service, Home.of(settings), limits)
        answers = Handlers(agent_service, settings, metrics=metrics, readers=self._readers, limits=limits)
        self._routes = (*routes(answers), self._own_route())
        self._document = b""
        self._front = ControlApp(self._routes)
        self._doors: list[asyncio.Server] = []
        self._file: SocketFile | None = None

    async def __aenter__(self) -> Self:
        self._connections = Connections(self._front.answer, limits=self._limits, uid=os.geteuid())
        try:
            await self._open_socket()
            if self._settings.agent_http_port:
                await self._open_port(self._settings.agent_http_port)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _open_socket(self) -> None:
        try:
            self._file = await asyncio.to_thread(SocketFile.open, self._state_dir, backlog=BACKLOG)
        except OSError as error:
            _log.warning(
                "control_socket_unavailable",
                error=str(error),
                hint="the agent goes on and reads the spool; to be asked by others, set akosha_agent_state_dir to a "
                "short path on a local disk",
            )
            return
        loop = asyncio.get_running_loop()
        self._doors.append(await loop.create_server(self._connections, sock=self._file.listening, backlog=BACKLOG))
        _log.debug("control_socket_open", path=str(self._file.path))

    async def _open_port(self, port: int) -> None:
        token = self._settings.agent_http_token.get_secret_value()
        try:
            token = token or await asyncio.to_thread(kept_token, self._state_dir)
        except OSError as error:
            cure = "set akosha_agent_http_token, or move away what stands in the place of http-token"
            _log.error("control_port_unavailable", port=port, error=f"no token: {error}", hint=cure)
            return
        self._front.loopback = LoopbackRules(port, token)
        loop = asyncio.get_running_loop()
        try:
            self._doors.append(await loop.create_server(self._connections, ADDRESS, port, backlog=BACKLOG))
        except OSError as error:
            cure = "set akosha_agent_http_port to a port that is free, or to 0"
            _log.error("control_port_unavailable", port=port, error=error.strerror or str(error), hint=cure)
            return
        _log.info("control_port_open", address=f"http://{ADDRESS}:{port}/")

    async def _close(self) -> None:
        for door in self._doors:
            door.close()
        if self._file is not None:
            self._file.listening.close()
            await asyncio.to_thread(self._file.remove)
        self._readers.end()
        await self._connections.end()

    def _own_route(self) -> Route:
        told = Answer(description="This document.", schema={"type": "object"})
        return Route(
            method="GET",
            path="/openapi.json",
            name="getOpenApi",
            summary="What can be asked, and what is answered.",
            answer=self._openapi,
            told=ALWAYS | {HTTPStatus.OK: told},
        )

    async def _openapi(self, _request: web.BaseRequest) -> web.StreamResponse:
        if not self._document:
            from agent.entrypoints.control_api.openapi import document  # noqa: PLC0415 - rarely asked for

            self._document = await asyncio.to_thread(lambda: orjson.dumps(document(self._routes)))
        return web.Response(body=self._document, content_type=JSON)
