"""A session with an MCP server. It is started when needed, and again when the server no longer knows it."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from agent.adapters.akosha.http import McpHttpClient, Reply

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
    """The headers of a session's requests, and the tools that the server offers."""

    headers: Mapping[str, str]
    catalog: ToolCatalog


class Client:
    """Calls tools. `silence_seconds` is the maximum time without activity. Every failure is a SinkError.

    `stored_token`: see `AkoshaSink`.
    """

    def __init__(
        self, address: ServerAddress, silence_seconds: float, stored_token: Callable[[], str] = lambda: ""
    ) -> None:
        self._address = address
        self._stored_token, self._is_stored = stored_token, False
        self._silence_seconds = silence_seconds
        self._http_task: asyncio.Task[McpHttpClient] | None = None
        self._session: Session | None = None
        self._session_lock = asyncio.Lock()
        self._ids = itertools.count(1)
        self.bytes_sent = 0
        self.health_version = ""
        self.sessions = 0
        """The number of sessions started. A new session may mean that the server was restarted."""

    async def is_healthy(self) -> bool:
        """Return within 0.9 s whether the server may be up. Never raises.

        False if nothing listens, or if the server reports that it is unhealthy. True if the result is unknown: no
        response in time, or a fault that the handshake will report.
        """
        try:
            async with asyncio.timeout(AVAILABLE_SECONDS):
                # Loading the HTTP library may take longer on a busy machine; a TCP probe does not need it.
                not_loaded = self._http_task is None or not self._http_task.done()
                if not_loaded and self._address.is_local and not await self._listens():
                    return False
                version = await (await self._http()).health()
        except TimeoutError:
            return True
        except SinkError as error:
            await self._reset_after(error)
            return not is_unreachable(error)
        if version is None:
            return False
        self.health_version = version
        return True

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of a response, "" if it has none. Raises SinkError if there is no response."""
        return await (await self._http()).server_date(seconds)

    async def _listens(self) -> bool:
        host, port = self._address.tcp_address
        return await may_be_reached(host, port, seconds=AVAILABLE_SECONDS)

    async def session(self) -> Session:
        """Return the session. Concurrent callers share one handshake. Raises SinkError."""
        if self._session is None:
            async with self._session_lock:
                if self._session is None:
                    self._session = await self._start_session()
                    self.sessions += 1
        return self._session

    async def checked_session(self) -> Session:
        """Return a session after checking that the server still knows it. Raises SinkError."""
        session = self._session
        if session is None:
            return await self.session()
        try:
            await self._request("ping", [b"{}"], session.headers, min(self._silence_seconds, HANDSHAKE_SECONDS))
        except SessionGone:
            self._drop_session(session)
        except Rejected:
            return session  # the server does not support ping, but knows the session
        return await self.session()

    async def call(self, tool: str, arguments: Sequence[bytes]) -> ToolResult:
        """Call a tool; `arguments` is JSON in pieces. If the session is gone, start another one and call once more.

        Raises Rejected if the server does not accept the arguments, ToolGone, and other SinkErrors.
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
        """Close the idle connections. The session continues. Never raises."""
        if (http := result_of(self._http_task)) is not None:
            await http.drop_idle_connections()

    async def reset(self) -> None:
        """Discard the HTTP client; the next one reads the certificates again. The session continues."""
        if self._http_task is not None and not self._http_task.done():
            return  # a client is being built and reads the current files
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
            tool_result = ToolResult.of(result)
            if tool_result.failed:
                raise self._refused(self._address.quote(tool_result.text) or "no reason given")
        except Rejected as error:
            if errors.is_unknown_tool(error.reason):
                self._drop_session(session)
                raise ToolGone(self._address, tool) from error
            raise
        return tool_result

    async def _start_session(self) -> Session:
        request = {
            "protocolVersion": PROTOCOL,
            "capabilities": {},
            "clientInfo": {"name": "akosha-agent", "version": __version__},
        }
        silence_seconds = min(self._silence_seconds, HANDSHAKE_SECONDS)
        try:
            result, session_id = await self._request("initialize", [orjson.dumps(request)], {}, silence_seconds)
            headers = self._headers(result, session_id)
            await self._notify("notifications/initialized", headers, silence_seconds)
            tools = await self._tools(headers, silence_seconds)
        except Rejected as error:
            raise errors.not_mcp(self._address, f"no session ({error.reason})") from error
        return Session(headers, ToolCatalog.read(self._server(result), tools, self._address))

    def _headers(self, result: Message, session_id: str) -> dict[str, str]:
        protocol = result.get("protocolVersion")
        if not isinstance(protocol, str) or not _PROTOCOL.fullmatch(protocol):
            raise errors.not_mcp(self._address, "a response without a protocol version")
        if session_id and not _SESSION_ID.fullmatch(session_id):
            raise errors.not_mcp(self._address, "a session id that is not valid in a header")
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
                raise errors.not_mcp(self._address, "a response without a list of tools")
            for tool in page:
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    schema = tool.get("inputSchema")
                    tools[tool["name"]] = schema if isinstance(schema, dict) else {}
            if not isinstance(cursor, str) or not cursor or params.get("cursor") == cursor:
                return tools
            params = {"cursor": cursor}
        raise errors.not_mcp(self._address, "a list of tools that does not end")

    async def _request(
        self, method: str, params: Sequence[bytes], headers: Mapping[str, str], silence_seconds: float
    ) -> tuple[Message, str]:
        """Return the result of a request, and the session ID of the response."""
        number = next(self._ids)
        head = b'{"jsonrpc":"2.0","id":%d,"method":"%s","params":' % (number, method.encode())
        reply = await self._post([head, *params, b"}"], headers, request_id=number, silence_seconds=silence_seconds)
        error = reply.message.get("error")
        if isinstance(error, dict):
            raise self._failed(method, error)
        result: Message = reply.message["result"]
        return result, reply.session_id

    def _failed(self, method: str, error: Message) -> SinkError:
        code, reason = error.get("code"), self._address.quote(error.get("message", "")) or "no reason given"
        if code == _METHOD_NOT_FOUND:
            return errors.not_mcp(self._address, f"it does not support {method}")
        return self._refused(reason) if code == _INVALID_PARAMS else errors.server_error(self._address, reason)

    def _refused(self, reason: str) -> SinkError:
        return (
            errors.server_error(self._address, reason)
            if errors.is_transient(reason)
            else Rejected(self._address, reason)
        )

    async def _notify(self, method: str, headers: Mapping[str, str], silence_seconds: float) -> None:
        body = b'{"jsonrpc":"2.0","method":"%s"}' % method.encode()
        await self._post([body], headers, request_id=None, silence_seconds=silence_seconds)

    async def _post(
        self, body: Sequence[bytes], headers: Mapping[str, str], *, request_id: int | None, silence_seconds: float
    ) -> "Reply":
        http = await self._http()
        try:
            return await http.post(body, headers, request_id=request_id, silence_seconds=silence_seconds)
        except SinkError as error:
            await self._reset_after(error)
            raise

    async def _reset_after(self, error: SinkError) -> None:
        """Discard the client: certificates or the token may be replaced before the next attempt."""
        if isinstance(error, errors.TlsFailed | errors.TokenRefused):
            await self.reset()

    async def _http(self) -> "McpHttpClient":
        if self._http_task is None or (self._http_task.done() and result_of(self._http_task) is None):
            self._http_task = asyncio.create_task(asyncio.to_thread(self._make_http), name="akosha-client")
            self._http_task.add_done_callback(mark_retrieved)
        return await asyncio.shield(self._http_task)

    def _make_http(self) -> "McpHttpClient":
        from agent.adapters.akosha.http import McpHttpClient  # noqa: PLC0415 - only needed for pushes

        if stored := self._stored_token():
            self._is_stored = self._is_stored or stored == self._address.token
            if self._is_stored:  # otherwise the token has another source, which this one must not override
                self._address = replace(self._address, token=stored)
        return McpHttpClient(self._address, self._count)

    def _count(self, size: int) -> None:
        self.bytes_sent += size
