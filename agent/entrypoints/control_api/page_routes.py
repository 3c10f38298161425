"""Handlers of the page's routes. What they need is imported when a page is opened."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap.home import Home
from agent.domain.errors import NoSuchObject, SettingsError
from agent.entrypoints.control_api.auth import unauthorized
from agent.entrypoints.control_api.connection import Connection, Limits
from agent.entrypoints.control_api.messages import WHOLE_NUMBER, json_response, parse_body, read_body
from agent.entrypoints.control_api.page_access import PageAccess
from agent.entrypoints.control_api.problems import Problem
from agent.entrypoints.control_api.routes import JSON, MOST_ENTRIES, PageToken, ProofRequest
from agent.entrypoints.control_api.shared import SharedCalls
from agent.entrypoints.page.documents import OUTCOMES
from agent.entrypoints.page.sessions import TOKEN_SECONDS
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.entrypoints.page.files import StaticFile

DEFAULT_ENTRIES = 100


class PageRoutes:
    """The handlers. Requests for the same document share one call."""

    def __init__(
        self, agent_service: AgentService, settings: Settings, access: PageAccess, shared: SharedCalls, limits: Limits
    ) -> None:
        self._agent_service, self._settings, self._access = agent_service, settings, access
        self._shared, self._limits, self._clock = shared, limits, Home.of(settings).clock
        self._files: Mapping[str, StaticFile] = {}

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Respond with a static file."""
        from agent.entrypoints.page.files import HEADERS, read_files  # noqa: PLC0415

        if not self._files:
            self._files = await asyncio.to_thread(read_files)
        found = self._files.get(request.path)
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found.body, headers={**HEADERS, "Content-Type": found.content_type})

    async def open(self, _request: web.Request) -> web.StreamResponse:
        try:
            url = await self._access.open()
        except OSError as error:
            detail = f"no port of this machine can be opened: {error.strerror or error}"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, hint="run akosha-agent open again later") from error
        ends = self._clock.now() + timedelta(seconds=TOKEN_SECONDS)
        return json_response(HTTPStatus.OK, {"url": url, "expires_at": ends.isoformat()})

    async def start_session(self, request: web.Request) -> web.StreamResponse:
        """The token stays valid if another user's process sends it."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        given = parse_body(await read_body(request, (JSON,), self._limits), PageToken)
        await self._access.check_peer(connection)
        started = await self._access.start_session(given.token)
        if started is None:
            raise unauthorized(f"the address of the page is valid once, for {TOKEN_SECONDS:g} s")
        session, ends = started
        return json_response(HTTPStatus.OK, {"session": session, "expires_at": ends.isoformat()})

    async def prove(self, request: web.Request) -> web.StreamResponse:
        """The proof holds for the address in `Host` only: a server at another address cannot pass it on."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        asked = parse_body(await read_body(request, (JSON,), self._limits), ProofRequest)
        await self._access.check_peer(connection)
        proof = self._access.proof(asked.id, f"{request.host} {asked.nonce}")
        if proof is None:
            raise unauthorized("the session has ended")
        return json_response(HTTPStatus.OK, {"proof": proof})

    async def history(self, request: web.Request) -> web.StreamResponse:
        from agent.entrypoints.page.history import read_history  # noqa: PLC0415

        before, limit = _number(request, "before"), _number(request, "limit")
        if limit is not None and not 0 < limit <= MOST_ENTRIES:
            raise Problem(HTTPStatus.BAD_REQUEST, f"limit is {limit}", hint=f"use 1 to {MOST_ENTRIES}")
        outcome = next((one for one in OUTCOMES if one == request.query.get("outcome")), None)
        if outcome is None and "outcome" in request.query:
            detail = f"outcome is {request.query['outcome'][:80]!r}"
            raise Problem(HTTPStatus.BAD_REQUEST, detail, hint=f"use {', '.join(OUTCOMES)}")

        async def read() -> bytes:
            return orjson.dumps(
                await read_history(self._agent_service, before=before, limit=limit or DEFAULT_ENTRIES, outcome=outcome)
            )

        return json_response(HTTPStatus.OK, await self._shared.result(("history", before, limit, outcome), read))

    async def plots(self, _request: web.Request) -> web.StreamResponse:
        from agent.entrypoints.page.history import read_plots  # noqa: PLC0415

        async def read() -> bytes:
            return orjson.dumps(await read_plots(self._agent_service, self._clock.now()))

        return json_response(HTTPStatus.OK, await self._shared.result("plots", read))

    async def uploads(self, _request: web.Request) -> web.StreamResponse:
        from agent.entrypoints.page.uploads import read_uploads  # noqa: PLC0415

        async def read() -> bytes:
            return orjson.dumps(await read_uploads(self._settings, self._agent_service.identity.system_id))

        return json_response(HTTPStatus.OK, await self._shared.result("uploads", read))

    async def verify(self, _request: web.Request) -> web.StreamResponse:
        try:
            await self._agent_service.request_verification()
        except (SettingsError, NoSuchObject) as error:
            raise Problem(HTTPStatus.CONFLICT, error.message, hint=error.hint) from error
        return json_response(HTTPStatus.ACCEPTED, {"accepted": True})


def _number(request: web.Request, name: str) -> int | None:
    """Return a number in the query, None if it is not there. Raises Problem."""
    text = request.query.get(name)
    if text is None:
        return None
    if not WHOLE_NUMBER.fullmatch(text):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} is {text[:80]!r}", hint="use a whole number")
    return int(text)
