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
from agent.domain.reachability import is_unreachable
from agent.ports.concurrency import mark_retrieved, result_of

if TYPE_CHECKING:
    from agent.adapters.akosha.http import Http, Reply

PROTOCOL = "2025-06-18"
HANDSHAKE_SECONDS = 30.0
AVAILABLE_SECONDS = 0.9
END_SESSION_SECONDS = 1.0

_MAX_PAGES = 50
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,512}")
_PROTOCOL = re.compile(r"\d{4}-\d\d-\d\d")
_INVALID_PARAMS, _METHOD_NOT_FOUND = -32602, -32601


@dataclass(frozen=True, slots=True)
class Session:
    """What the server gave us to come back with, and what it offers."""

    headers: Mapping[str, str]
    catalog: ToolCatalog


class Client:
    """Calls tools. `silence`: so many seconds may pass without a sign of life. Every failure is a SinkError."""

    def __init__(self, address: ServerAddress, silence_seconds: float) -> None:
        self._address = address
        self._silence_seconds = silence_seconds
        self._http_task: asyncio.Task[Http] | None = None
        self._session: Session | None = None
        self._session_lock = asyncio.Lock()
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
                cold = self._http_task is None or not self._http_task.done()
                if cold and self._address.is_local and not await self._listens():
                    return False
                version = await (await self._http()).health()
        except TimeoutError:
            return True
        except SinkError as error:
            await self._discard_for(error)
            return not is_unreachable(error)
        if version is None:
            return False
        self.health_version = version
        return True

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of an answer, "" where there is none. Raises SinkError without an answer."""
        return await (await self._http()).server_date(seconds)

    async def _listens(self) -> bool:
        host, port = self._address.tcp_address
        return await may_be_reached(host, port, seconds=AVAILABLE_SECONDS)

    async def session(self) -> Session:
        """Return the session; callers at the same time share one handshake. Raises SinkError."""
        if self._session is None:
            async with self._session_lock:
                if self._session is None:
                    self._session = await self._start_session()
                    self.sessions += 1
        return self._session

    async def checked_session(self) -> Session:
        """Return a session that the server still knows. Raises SinkError."""
        session = self._session
        if session is None:
            return await self.session()
        try:
            await self._request("ping", [b"{}"], session.headers, min(self._silence_seconds, HANDSHAKE_SECONDS))
        except SessionGone:
            self._drop_session(session)
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
            self._drop_session(session)
        session = await self.session()
        try:
            return await self._call(session, tool, arguments)
        except SessionGone:
            self._drop_session(session)
            raise

    async def drop_idle_connections(self) -> None:
        """Close the connections that nothing uses now; the session, if there is one, goes on. Never raises."""
        if (http := result_of(self._http_task)) is not None:
            await http.drop_idle_connections()

    async def reset(self) -> None:
        """Discard the HTTP client: the next call builds one that reads certificates again. The session goes on."""
        if self._http_task is not None and not self._http_task.done():
            return  # it is being built now, and reads the files as they are now
        http_task, self._http_task = self._http_task, None
        if (http := result_of(http_task)) is not None:
            await http.retire()

    async def aclose(self) -> None:
        """End the session and close the connections. Idempotent."""
        session, self._session = self._session, None
        http_task, self._http_task = self._http_task, None
        if http_task is None:
            return
        await asyncio.wait({http_task})
        if (http := result_of(http_task)) is None:
            return
        try:
            if session is not None and "Mcp-Session-Id" in session.headers:
                with contextlib.suppress(SinkError, TimeoutError):
                    async with asyncio.timeout(END_SESSION_SECONDS):
                        await http.delete(session.headers)
        finally:
            await http.aclose()

    def _drop_session(self, session: Session) -> None:
        if self._session is session:
            self._session = None

    async def _call(self, session: Session, tool: str, arguments: Sequence[bytes]) -> ToolResult:
        params = [b'{"name":', orjson.dumps(tool), b',"arguments":', *arguments, b"}"]
        try:
            result, _ = await self._request("tools/call", params, session.headers, self._silence_seconds)
            answer = ToolResult.of(result)
            if answer.failed:
                raise self._refused(self._address.quote(answer.text) or "no reason given")
        except Rejected as error:
            if errors.is_unknown_tool(error.reason):
                self._drop_session(session)
                raise ToolGone(self._address, tool) from error
            raise
        return answer

    async def _start_session(self) -> Session:
        asked = {
            "protocolVersion": PROTOCOL,
            "capabilities": {},
            "clientInfo": {"name": "akosha-agent", "version": __version__},
        }
        silence_seconds = min(self._silence_seconds, HANDSHAKE_SECONDS)
        try:
            result, session_id = await self._request("initialize", [orjson.dumps(asked)], {}, silence_seconds)
            headers = self._headers(result, session_id)
            await self._notify("notifications/initialized", headers, silence_seconds)
            tools = await self._tools(headers, silence_seconds)
        except Rejected as error:
            raise errors.not_mcp(self._address, f"no session ({error.reason})") from error
        return Session(headers, ToolCatalog.read(self._server(result), tools, self._address))

    def _headers(self, result: Message, session_id: str) -> dict[str, str]:
        protocol = result.get("protocolVersion")
        if not isinstance(protocol, str) or not _PROTOCOL.fullmatch(protocol):
            raise errors.not_mcp(self._address, "an answer that names no protocol version")
        if session_id and not _SESSION_ID.fullmatch(session_id):
            raise errors.not_mcp(self._address, "a session id that cannot stand in a header")
        return {"MCP-Protocol-Version": protocol, **({"Mcp-Session-Id": session_id} if session_id else {})}

    def _server(self, result: Message) -> str:
        info = result.get("serverInfo")
        named = [info.get("name"), info.get("version")] if isinstance(info, dict) else []
        return self._address.quote(" ".join(as_text(part) for part in named if part) or "unknown")[:100]

    async def _tools(self, headers: Mapping[str, str], silence_seconds: float) -> dict[str, Message]:
        tools: dict[str, Message] = {}
        params: Message = {}
        for _ in range(_MAX_PAGES):
            result, _id = await self._request("tools/list", [orjson.dumps(params)], headers, silence_seconds)
            page, cursor = result.get("tools"), result.get("nextCursor")
            if not isinstance(page, list):
                raise errors.not_mcp(self._address, "an answer that lists no tools")
            for tool in page:
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    schema = tool.get("inputSchema")
                    tools[tool["name"]] = schema if isinstance(schema, dict) else {}
            if not isinstance(cursor, str) or not cursor or params.get("cursor") == cursor:
                return tools
            params = {"cursor": cursor}
        raise errors.not_mcp(self._address, "a list of tools without an end")

    async def _request(
        self, method: str, params: Sequence[bytes], headers: Mapping[str, str], silence_seconds: float
    ) -> tuple[Message, str]:
        """Return the result of a request, and the session id that came with it."""
        number = next(self._ids)
        head = b'{"jsonrpc":"2.0","id":%d,"method":"%s","params":' % (number, method.encode())
        reply = await self._post([head, *params, b"}"], headers, wanted=number, silence_seconds=silence_seconds)
        error = reply.message.get("error")
        if isinstance(error, dict):
            raise self._failed(method, error)
        result: Message = reply.message["result"]
        return result, reply.session_id

    def _failed(self, method: str, error: Message) -> SinkError:
        code, why = error.get("code"), self._address.quote(error.get("message", "")) or "no reason given"
        if code == _METHOD_NOT_FOUND:
            return errors.not_mcp(self._address, f"it knows no {method}")
        return self._refused(why) if code == _INVALID_PARAMS else errors.server_trouble(self._address, why)

    def _refused(self, why: str) -> SinkError:
        return errors.server_trouble(self._address, why) if errors.is_passing(why) else Rejected(self._address, why)

    async def _notify(self, method: str, headers: Mapping[str, str], silence_seconds: float) -> None:
        body = b'{"jsonrpc":"2.0","method":"%s"}' % method.encode()
        await self._post([body], headers, wanted=None, silence_seconds=silence_seconds)

    async def _post(
        self, body: Sequence[bytes], headers: Mapping[str, str], *, wanted: int | None, silence_seconds: float
    ) -> "Reply":
        http = await self._http()
        try:
            return await http.post(body, headers, wanted=wanted, silence_seconds=silence_seconds)
        except SinkError as error:
            await self._discard_for(error)
            raise

    async def _discard_for(self, error: SinkError) -> None:
        """TLS has failed: the files that a new client reads may be others by the next attempt."""
        if isinstance(error, errors.Untrusted):
            await self.reset()

    async def _http(self) -> "Http":
        if self._http_task is None or (self._http_task.done() and result_of(self._http_task) is None):
            self._http_task = asyncio.create_task(asyncio.to_thread(self._make_http), name="akosha-client")
            self._http_task.add_done_callback(mark_retrieved)
        return await asyncio.shield(self._http_task)

    def _make_http(self) -> "Http":
        from agent.adapters.akosha.http import Http  # noqa: PLC0415 - only for those who push

        return Http(self._address, self._count)

    def _count(self, size: int) -> None:
        self.bytes_sent += size
