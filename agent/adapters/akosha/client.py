"""A session with an MCP server, begun when it is needed, and again when the server has forgotten it."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from agent import __version__
from agent.adapters.akosha import errors
from agent.adapters.akosha.errors import Rejected, SessionGone, ToolGone
from agent.adapters.akosha.server_address import ServerAddress, as_text
from agent.adapters.akosha.tools import Message, ToolCatalog, ToolResult
from agent.adapters.tcp_probe import may_be_reached
from agent.domain.errors import SinkError
from agent.domain.reachability import is_definite_no
from agent.ports.concurrency import mark_retrieved

if TYPE_CHECKING:
    from agent.adapters.akosha.http import Http, Reply

PROTOCOL = "2025-06-18"
HANDSHAKE_SECONDS = 30.0
AVAILABLE_SECONDS = 0.9
FAREWELL_SECONDS = 1.0

_MAX_PAGES = 50
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,512}")
_PROTOCOL = re.compile(r"\d{4}-\d\d-\d\d")
_INVALID_PARAMS, _METHOD_NOT_FOUND = -32602, -32601


@dataclass(frozen=True, slots=True)
class Session:
    """What the server gave us to come back with, and what it offers."""

    headers: Mapping[str, str]
    menu: ToolCatalog


class Client:
    """Calls tools. `silence`: so many seconds may pass without a sign of life. Every failure is a SinkError."""

    def __init__(self, place: ServerAddress, silence: float) -> None:
        self._place = place
        self._silence = silence
        self._making: asyncio.Task[Http] | None = None
        self._session: Session | None = None
        self._beginning = asyncio.Lock()
        self._ids = itertools.count(1)
        self.bytes_sent = 0
        self.health_version = ""
        self.sessions = 0
        """How many were begun: another one may be with another run of the server."""

    async def healthy(self) -> bool:
        """Say within 0.9 s whether the server may be up: False where nobody is there, or it says that it is not well.

        True where nothing is known: no answer in time, or a fault that the handshake explains. Never raises.
        """
        try:
            async with asyncio.timeout(AVAILABLE_SECONDS):
                # A busy machine may take longer than that to load the library: nobody there is known without it.
                cold = self._making is None or not self._making.done()
                if cold and self._place.is_here and not await self._listens():
                    return False
                version = await (await self._http()).health()
        except TimeoutError:
            return True
        except SinkError as error:
            await self._discard_for(error)
            return not is_definite_no(error)
        if version is None:
            return False
        self.health_version = version
        return True

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of an answer, "" where there is none. Raises SinkError without an answer."""
        return await (await self._http()).server_date(seconds)

    async def _listens(self) -> bool:
        host, port = self._place.door
        return await may_be_reached(host, port, seconds=AVAILABLE_SECONDS)

    async def session(self) -> Session:
        """Return the session; callers at the same time share one handshake. Raises SinkError."""
        if self._session is None:
            async with self._beginning:
                if self._session is None:
                    self._session = await self._begin()
                    self.sessions += 1
        return self._session

    async def living_session(self) -> Session:
        """Return a session that the server still knows. Raises SinkError."""
        session = self._session
        if session is None:
            return await self.session()
        try:
            await self._request("ping", [b"{}"], session.headers, min(self._silence, HANDSHAKE_SECONDS))
        except SessionGone:
            self._forget(session)
        except Rejected:
            return session  # it does not know the question, and knows who asks
        return await self.session()

    async def call(self, tool: str, arguments: Sequence[bytes]) -> ToolResult:
        """Call a tool, its arguments JSON in pieces. If the session is gone, begin another and call once more.

        Raises Rejected where the server would not look at the arguments, ToolGone, and other SinkErrors.
        """
        session = await self.session()
        try:
            return await self._call(session, tool, arguments)
        except SessionGone:
            self._forget(session)
        session = await self.session()
        try:
            return await self._call(session, tool, arguments)
        except SessionGone:
            self._forget(session)
            raise

    async def drop_idle_connections(self) -> None:
        """Close the connections that nothing uses now; the session, if there is one, goes on. Never raises."""
        making = self._making
        if making is not None and making.done() and not making.cancelled() and making.exception() is None:
            await making.result().drop_idle_connections()

    async def reset(self) -> None:
        """Discard the HTTP client: the next call builds one that reads certificates again. The session goes on."""
        making, self._making = self._making, None
        if making is None:
            return
        if not making.done():
            self._making = making  # it is being built now, and reads the files as they are now
        elif not making.cancelled() and making.exception() is None:
            await making.result().retire()

    async def aclose(self) -> None:
        """End the session and close the connections. Idempotent."""
        session, self._session = self._session, None
        making, self._making = self._making, None
        if making is None:
            return
        await asyncio.wait({making})
        if making.cancelled() or making.exception() is not None:
            return
        http = making.result()
        try:
            if session is not None and "Mcp-Session-Id" in session.headers:
                with contextlib.suppress(SinkError, TimeoutError):
                    async with asyncio.timeout(FAREWELL_SECONDS):
                        await http.delete(session.headers)
        finally:
            await http.aclose()

    def _forget(self, session: Session) -> None:
        if self._session is session:
            self._session = None

    async def _call(self, session: Session, tool: str, arguments: Sequence[bytes]) -> ToolResult:
        params = [b'{"name":', orjson.dumps(tool), b',"arguments":', *arguments, b"}"]
        try:
            result, _ = await self._request("tools/call", params, session.headers, self._silence)
            answer = ToolResult.of(result)
            if answer.failed:
                raise self._refused(self._place.words(answer.text) or "no reason given")
        except Rejected as error:
            if errors.is_unknown_tool(error.reason):
                self._forget(session)
                raise ToolGone(self._place, tool) from error
            raise
        return answer

    async def _begin(self) -> Session:
        asked = {
            "protocolVersion": PROTOCOL,
            "capabilities": {},
            "clientInfo": {"name": "akosha-agent", "version": __version__},
        }
        silence = min(self._silence, HANDSHAKE_SECONDS)
        try:
            result, session_id = await self._request("initialize", [orjson.dumps(asked)], {}, silence)
            headers = self._headers(result, session_id)
            await self._notify("notifications/initialized", headers, silence)
            tools = await self._tools(headers, silence)
        except Rejected as error:
            raise errors.not_mcp(self._place, f"no session ({error.reason})") from error
        return Session(headers, ToolCatalog.read(self._server(result), tools, self._place))

    def _headers(self, result: Message, session_id: str) -> dict[str, str]:
        protocol = result.get("protocolVersion")
        if not isinstance(protocol, str) or not _PROTOCOL.fullmatch(protocol):
            raise errors.not_mcp(self._place, "an answer that names no protocol version")
        if session_id and not _SESSION_ID.fullmatch(session_id):
            raise errors.not_mcp(self._place, "a session id that cannot stand in a header")
        return {"MCP-Protocol-Version": protocol, **({"Mcp-Session-Id": session_id} if session_id else {})}

    def _server(self, result: Message) -> str:
        info = result.get("serverInfo")
        named = [info.get("name"), info.get("version")] if isinstance(info, dict) else []
        return self._place.words(" ".join(as_text(part) for part in named if part) or "unknown")[:100]

    async def _tools(self, headers: Mapping[str, str], silence: float) -> dict[str, Message]:
        tools: dict[str, Message] = {}
        params: Message = {}
        for _ in range(_MAX_PAGES):
            result, _id = await self._request("tools/list", [orjson.dumps(params)], headers, silence)
            page, cursor = result.get("tools"), result.get("nextCursor")
            if not isinstance(page, list):
                raise errors.not_mcp(self._place, "an answer that lists no tools")
            for tool in page:
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    schema = tool.get("inputSchema")
                    tools[tool["name"]] = schema if isinstance(schema, dict) else {}
            if not isinstance(cursor, str) or not cursor or params.get("cursor") == cursor:
                return tools
            params = {"cursor": cursor}
        raise errors.not_mcp(self._place, "a list of tools without an end")

    async def _request(
        self, method: str, params: Sequence[bytes], headers: Mapping[str, str], silence: float
    ) -> tuple[Message, str]:
        """Return the result of a request, and the session id that came with it."""
        number = next(self._ids)
        head = b'{"jsonrpc":"2.0","id":%d,"method":"%s","params":' % (number, method.encode())
        reply = await self._post([head, *params, b"}"], headers, wanted=number, silence=silence)
        error = reply.message.get("error")
        if isinstance(error, dict):
            raise self._failed(method, error)
        result: Message = reply.message["result"]
        return result, reply.session_id

    def _failed(self, method: str, error: Message) -> SinkError:
        code, why = error.get("code"), self._place.words(error.get("message", "")) or "no reason given"
        if code == _METHOD_NOT_FOUND:
            return errors.not_mcp(self._place, f"it knows no {method}")
        return self._refused(why) if code == _INVALID_PARAMS else errors.trouble(self._place, why)

    def _refused(self, why: str) -> SinkError:
        return errors.trouble(self._place, why) if errors.is_passing(why) else Rejected(self._place, why)

    async def _notify(self, method: str, headers: Mapping[str, str], silence: float) -> None:
        body = b'{"jsonrpc":"2.0","method":"%s"}' % method.encode()
        await self._post([body], headers, wanted=None, silence=silence)

    async def _post(
        self, body: Sequence[bytes], headers: Mapping[str, str], *, wanted: int | None, silence: float
    ) -> "Reply":
        http = await self._http()
        try:
            return await http.post(body, headers, wanted=wanted, silence=silence)
        except SinkError as error:
            await self._discard_for(error)
            raise

    async def _discard_for(self, error: SinkError) -> None:
        """TLS has failed: the files that a new client reads may be others by the next attempt."""
        if isinstance(error, errors.Untrusted):
            await self.reset()

    async def _http(self) -> "Http":
        if self._making is None or (
            self._making.done() and (self._making.cancelled() or self._making.exception() is not None)
        ):
            self._making = asyncio.create_task(asyncio.to_thread(self._make), name="akosha-client")
            self._making.add_done_callback(mark_retrieved)
        return await asyncio.shield(self._making)

    def _make(self) -> "Http":
        from agent.adapters.akosha.http import Http  # noqa: PLC0415 - only for those who push

        return Http(self._place, self._count)

    def _count(self, size: int) -> None:
        self.bytes_sent += size
