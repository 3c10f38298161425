"""A server with the answers of Akosha 0.11.0, built with the MCP SDK, for tests without a real Akosha.

    with Akosha() as akosha:
        ...  # akosha.url is http://127.0.0.1:PORT/mcp
        akosha.rows()

It runs on a thread, on an ephemeral loopback port, and serves any thread and process. Each answer was compared with the
real server's. `akosha_main.py` runs it as a separate process.
"""

import asyncio
import socket
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import uvicorn
from mcp.server.lowlevel import Server
from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

EMBEDDING_LENGTH = 384
MAX_BATCH = 1000
TIMEOUT = 180.0

Answer = Mapping[str, object]
Interference = Callable[[str, Mapping[str, Any]], Answer | None]

_TEXT, _TEXTS, _OBJECT = {"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "object"}


def schema(*required: str, **properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


BATCH = schema("memories", memories={"type": "array", "items": {"type": "object", "additionalProperties": True}})
EXTRA_TOOLS: dict[str, dict[str, object]] = {
    "store_reflection": schema("content", content=_TEXT, tags=_TEXTS, memory_id=_TEXT, metadata=_OBJECT),
    "create_entity": schema(
        "name", "entity_type", name=_TEXT, entity_type=_TEXT, observations=_TEXTS, properties=_OBJECT
    ),
    "create_relation": schema(
        "from_entity",
        "to_entity",
        "relation_type",
        from_entity=_TEXT,
        to_entity=_TEXT,
        relation_type=_TEXT,
        properties=_OBJECT,
    ),
}
"""Tools that Akosha may offer in the future, with the arguments of Session-Buddy's tools of the same names."""


class HotRecord(BaseModel):
    system_id: str
    conversation_id: str
    content: str
    embedding: list[float]
    timestamp: datetime
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A stored memory."""

    system_id: str
    memory_id: str
    text: str
    timestamp: datetime
    metadata: dict[str, Any]
    embedding: Sequence[float]


@dataclass(frozen=True)
class Call:
    """A call of a tool; `size`: the number of memories in a batch, 1 for other tools."""

    tool: str
    size: int


@dataclass(frozen=True)
class Request:
    """A received HTTP request."""

    method: str
    path: str
    headers: dict[str, str]


class Akosha:
    """The server. Its data survives `stop()` and `start()`, which keep the port; sessions do not.

    `tools`: additional tools, names of EXTRA_TOOLS or name -> input schema. `token`: refuse requests without it.
    `json_response`: answer as application/json, not as events. `stateless`: no session ids. `page_size`: tools per
    page. `interfere` is called for each tool call, on a separate thread, where it may block; a result other than None
    is the answer (`{"isError": text}`: an error of the tool). All may be changed; tools, version and response format
    take effect at the next start. `file`: keep the rows there, without their embeddings, so that they survive a kill.
    """

    def __init__(
        self,
        *,
        tools: Sequence[str] | Mapping[str, dict[str, object]] = (),
        version: str = "0.9.5",
        token: str = "",
        port: int = 0,
        json_response: bool = False,
        stateless: bool = False,
        page_size: int = 100,
        batch_tool: bool = True,
        interfere: Interference | None = None,
        file: Path | None = None,
    ):
        self.tools, self.version, self.token, self.port = tools, version, token, port
        self.json_response, self.stateless, self.page_size = json_response, stateless, page_size
        self.batch_tool, self.interfere = batch_tool, interfere
        self.healthy = True
        self.health_answers = True
        """False: /health never answers."""
        self.calls: list[Call] = []
        self.requests: list[Request] = []
        self.kept: dict[str, list[dict[str, Any]]] = {}
        """Extra tool -> the arguments of each call."""
        self._file = file
        self._rows = {row.memory_id: row for row in stored_rows(file)} if file else {}
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    @property
    def handshakes(self) -> int:
        """Number of sessions that were started."""
        return sum(s.method == "POST" and s.path == "/mcp" and "mcp-session-id" not in s.headers for s in self.requests)

    def rows(self, system_id: str = "") -> list[Row]:
        """Return the stored rows of one system or of all, in the order of arrival."""
        return [row for row in list(self._rows.values()) if system_id in ("", row.system_id)]

    def ids(self, system_id: str = "") -> set[str]:
        return {row.memory_id for row in self.rows(system_id)}

    def types(self) -> dict[str, int]:
        """Return the number of stored memories by type."""
        return dict(Counter(row.metadata["type"] for row in self.rows()))

    def forget(self) -> None:
        """Delete the stored data and the recorded calls."""
        self._rows.clear()
        self.calls.clear()
        self.requests.clear()
        self.kept.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the previous port if there was one. Idempotent."""
        if self._thread is not None:
            return
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = listener.getsockname()[1]
        running = self._running = _Running(self._application())
        self._thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, name="akosha")
        self._thread.start()
        assert running.up.wait(TIMEOUT)

    def stop(self) -> None:
        """End the server and abort its connections and sessions. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            assert self._running is not None
            self._running.end()
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def _application(self) -> Callable[..., Any]:
        server: Server[Any] = Server(
            "akosha-mcp", version=self.version, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        inner = server.streamable_http_app(
            json_response=self.json_response,
            stateless_http=self.stateless,
            custom_starlette_routes=[Route("/health", self._health), Route("/stand-in", self._stand_in)],
        )

        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                if scope["path"] != "/stand-in":
                    self.requests.append(Request(scope["method"], scope["path"], headers))
                if self.token and headers.get("authorization") != f"Bearer {self.token}":
                    await PlainTextResponse("who are you?", 401)(scope, receive, send)
                    return
            await inner(scope, receive, send)

        return application

    async def _health(self, _request: Any) -> Response:
        if not self.health_answers:
            await asyncio.Event().wait()
        if not self.healthy:
            return JSONResponse({"status": "starting"}, 503)
        return JSONResponse({"status": "ok", "service": "akosha", "version": self.version})

    async def _stand_in(self, _request: Any) -> Response:
        """Answer GET /stand-in, for tests that run the server as another process."""
        rows = [{"system_id": row.system_id, "memory_id": row.memory_id, **row.metadata} for row in self.rows()]
        return JSONResponse({"rows": rows, "calls": [[call.tool, call.size] for call in self.calls], "kept": self.kept})

    def _offered(self) -> dict[str, dict[str, object]]:
        extra = self.tools if isinstance(self.tools, Mapping) else {name: EXTRA_TOOLS[name] for name in self.tools}
        return {"search_all_systems": schema(), **({"batch_store_memories": BATCH} if self.batch_tool else {}), **extra}

    async def _list_tools(self, _context: Any, params: Any) -> ListToolsResult:
        tools = [Tool(name=name, input_schema=shape) for name, shape in self._offered().items()]
        start = int(params.cursor) if params and params.cursor else 0
        end = start + self.page_size
        return ListToolsResult(tools=tools[start:end], next_cursor=str(end) if end < len(tools) else None)

    async def _call_tool(self, _context: Any, params: Any) -> CallToolResult:
        arguments = params.arguments or {}
        memories = arguments.get("memories")
        self.calls.append(Call(params.name, len(memories) if isinstance(memories, list) else 1))
        answer = None
        if self.interfere is not None:
            answer = await asyncio.to_thread(self.interfere, params.name, arguments)
        if answer is None:
            answer = self._answer(params.name, arguments)
        if "isError" in answer:
            return CallToolResult(content=[TextContent(type="text", text=str(answer["isError"]))], is_error=True)
        text = TextContent(type="text", text=to_json(answer).decode())
        return CallToolResult(content=[text], structured_content=dict(answer))

    def _answer(self, tool: str, arguments: dict[str, Any]) -> Answer:
        if tool not in self._offered():
            return {"isError": f"Unknown tool: {tool!r}"}
        if tool == "batch_store_memories":
            try:
                return _batch_tool(self).validate_python(arguments)
            except ValidationError as error:
                return {"isError": str(error)}
        self.kept.setdefault(tool, []).append(arguments)
        return {"status": "stored"}

    def _store_all(self, memories: list[dict[str, Any]]) -> Answer:
        total = len(memories)
        if total > MAX_BATCH:
            why = f"Batch size exceeds maximum of {MAX_BATCH} memories"
            return {"status": "failed", "total": total, "stored": 0, "failed": total, "error": why}
        errors = []
        for memory in memories:
            try:
                why = self._store(memory)
            except Exception as error:  # noqa: BLE001 - as Akosha does
                why = str(error)
            if why:
                errors.append({"memory_id": memory.get("memory_id", "unknown"), "error": why})
        stored = total - len(errors)
        return {
            "status": "completed" if not errors else "partial" if stored else "failed",
            "total": total,
            "stored": stored,
            "failed": len(errors),
            "errors": errors,
            "stored_at": datetime.now(UTC).isoformat(),
        }

    def _store(self, memory: dict[str, Any]) -> str:
        memory_id, text, embedding = memory.get("memory_id"), memory.get("text"), memory.get("embedding")
        metadata = memory.get("metadata") or {}
        if not memory_id or not text:
            return "Missing required field (memory_id or text)"
        if embedding is None:
            return "Embedding is required: must be a 384-dimensional vector"
        now = datetime.now(UTC)
        record = HotRecord(
            system_id=metadata.get("source", "unknown"),
            conversation_id=memory_id,
            content=text,
            embedding=embedding,
            timestamp=datetime.fromisoformat(metadata.get("created_at", now.isoformat())),
            metadata={
                "source": metadata.get("source", "unknown"),
                "original_id": metadata.get("original_id"),
                "type": metadata.get("type", "session_memory"),
                "ingestion_method": "http_push",
                **({"correlation_id": metadata["correlation_id"]} if metadata.get("correlation_id") else {}),
            },
        )
        text.encode()
        if (length := len(record.embedding)) != EMBEDDING_LENGTH:
            return (
                f"Conversion Error: Cannot cast list with length {length} to array with length {EMBEDDING_LENGTH}"
                "\n\nLINE 3:             \n          ^"
            )
        if memory_id in self._rows:
            return f'Constraint Error: Duplicate key "conversation_id: {memory_id}" violates primary key constraint.'
        row = Row(
            system_id=record.system_id,
            memory_id=memory_id,
            text=text,
            timestamp=record.timestamp,
            metadata=record.metadata,
            embedding=array("f", record.embedding),
        )
        if self._file:
            with self._file.open("ab") as file:
                file.write(to_json(replace(row, embedding=())) + b"\n")
        self._rows[memory_id] = row
        return ""


def stored_rows(file: Path) -> list[Row]:
    """Return the rows that a server keeps in `file`, in the order of arrival, without their embeddings."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [TypeAdapter(Row).validate_json(line) for line in lines]


def _batch_tool(akosha: Akosha) -> TypeAdapter[Any]:
    """Return the tool as FastMCP calls it: invalid arguments are refused with pydantic's message."""

    def batch_store_memories(memories: list[dict[str, Any]]) -> Answer:
        return akosha._store_all(memories)

    return TypeAdapter(batch_store_memories)


class _Running(uvicorn.Server):
    """One run of the server, on the thread that calls `run`."""

    def __init__(self, application: Callable[..., Any]):
        super().__init__(
            uvicorn.Config(
                application,
                log_config=None,
                log_level="critical",
                lifespan="on",
                timeout_graceful_shutdown=0,
                ws="none",
            )
        )
        self.up = threading.Event()
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets=sockets)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
