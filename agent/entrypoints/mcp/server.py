"""The MCP server, on version 1 or 2 of the MCP SDK. The only module that imports the SDK.

The versions differ in how handlers are registered, and in the names of errors. Tools and results are built from the
protocol's JSON, which both versions accept.
"""

import asyncio
import fcntl
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

import anyio
import mcp.types
import structlog
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared import exceptions

from agent import __version__
from agent.entrypoints.formatting import json_value
from agent.entrypoints.mcp.progress import ReportProgress
from agent.settings import Loaded

STDIN, STDOUT, STDERR = 0, 1, 2
READ_BYTES = 65_536
LAST_WRITE_SECONDS = 1.0
"""How long to wait, at the end, for a client that has closed its output and does not read its input."""

INVALID_PARAMS = -32602

INSTRUCTIONS = (
    "Copies the memories that Session-Buddy keeps on this machine to a bucket, a directory or an Akosha server. "
    "If `akosha-agent run` is running, changes are synced automatically. Call sync_to_akosha to sync now, "
    "akosha_sync_status to see what is pending, errors and the configuration, and akosha_restore_points to list the "
    "uploads that can be restored. None of them accepts or returns the memories themselves."
)

# mypy sees only the installed version.
_types: Any = mcp.types
_exceptions: Any = exceptions
_Server: Any = Server
_stdio_server: Any = stdio_server
_IS_V1 = hasattr(_exceptions, "McpError")

_log = structlog.get_logger()

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LoadSettings = Callable[[], Loaded]
"""Reads the current settings; called in a thread. Raises SettingsError."""


async def serve(load: LoadSettings) -> int:
    """Serve until the client closes standard input; return 0. Each call reads the settings again.

    When cancelled, or when the client has disconnected, cancels the calls in progress and waits for their clean-up.
    """
    stdin, stdout = _claim_stdio()
    server = _server(load)
    with anyio.CancelScope() as scope:
        async with _stdio_server(stdin, stdout) as (received, sent):
            await server.run(received, sent, server.create_initialization_options())
            scope.deadline = anyio.current_time() + LAST_WRITE_SECONDS
    return 0


def _server(load: LoadSettings) -> Any:
    """Return the SDK's server with the tools."""

    def tools() -> Any:
        from agent.entrypoints.mcp.tools import tool_definitions  # noqa: PLC0415 - after the handshake

        return _types.ListToolsResult.model_validate({"tools": tool_definitions()})

    async def call(name: str, arguments: Mapping[str, object], report: ReportProgress | None) -> Any:
        from agent.entrypoints.mcp.tools import TOOL_NAMES, call_tool  # noqa: PLC0415

        if name not in TOOL_NAMES:
            raise _invalid_params(f"unknown tool {name}; the tools are {', '.join(TOOL_NAMES)}")
        result = await _with_cleanup(call_tool(name, arguments, load, report), name)
        text = json.dumps(result, indent=2, default=json_value, ensure_ascii=False)
        text = text.encode(errors="replace").decode()  # a path may contain bytes that are not Unicode
        content = {"content": [{"type": "text", "text": text}], "structuredContent": json.loads(text)}
        return _types.CallToolResult.model_validate(content)

    if not _IS_V1:

        async def list_tools_v2(_context: Any, _params: Any) -> Any:
            return tools()

        async def call_tool_v2(context: Any, params: Any) -> Any:
            wanted = context.meta is not None and "progress_token" in context.meta
            return await call(params.name, params.arguments or {}, context.session.report_progress if wanted else None)

        return _Server(
            "akosha-agent",
            title="Akosha sync",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=list_tools_v2,
            on_call_tool=call_tool_v2,
        )

    server = _Server("akosha-agent", version=__version__, instructions=INSTRUCTIONS)

    async def list_tools_v1(_request: Any) -> Any:
        return _types.ServerResult(tools())

    async def call_tool_v1(request: Any) -> Any:
        context = server.request_context
        token = context.meta.progressToken if context.meta is not None else None

        async def report(done: float, total: float | None, message: str) -> None:
            await context.session.send_progress_notification(token, done, total, message)

        arguments = request.params.arguments or {}
        return _types.ServerResult(await call(request.params.name, arguments, None if token is None else report))

    # Without the SDK's decorators: they validate the arguments, and return an error instead of a result.
    server.request_handlers[_types.ListToolsRequest] = list_tools_v1
    server.request_handlers[_types.CallToolRequest] = call_tool_v1
    return server


def _invalid_params(message: str) -> Exception:
    if _IS_V1:
        error: Exception = _exceptions.McpError(_types.ErrorData(code=INVALID_PARAMS, message=message))
    else:
        error = _exceptions.MCPError(INVALID_PARAMS, message)
    return error


async def _with_cleanup(work: Coroutine[Any, Any, T], tool: str) -> T:
    """Run a call in its own task; when cancelled, wait for its clean-up.

    The SDK cancels through anyio, which cancels every await repeatedly, including those of a clean-up.
    """
    task = asyncio.create_task(work, name=tool)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        _log.info("call_cancelled", tool=tool)
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            _log.error("call_failed", tool=tool, exc_info=error)
        raise
    return task.result()


def _claim_stdio() -> tuple["_Stdin", "_Stdout"]:
    """Reserve standard input and output for the protocol.

    Other readers of standard input get EOF, other output goes to standard error; child processes inherit neither.
    """
    stdin, stdout = (fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STDERR + 1) for descriptor in (STDIN, STDOUT))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, STDIN)
    os.close(null)
    os.dup2(STDERR, STDOUT)
    return _Stdin(stdin), _Stdout(stdout)


class _Stdin:
    """The lines that the client sends, in place of the SDK's text file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        with suppress(OSError):  # the terminal was closed
            while data := await _in_daemon_thread(os.read, self._descriptor, READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                for line in filter(bytes.strip, lines):
                    yield line


class _Stdout:
    """What is sent to the client, in place of the SDK's text file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, text: str) -> None:
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[await _in_daemon_thread(os.write, self._descriptor, rest) :]
        except OSError as error:
            _log.info("client_disconnected", error=str(error))
            raise anyio.ClosedResourceError from error  # ends the SDK's writer

    async def flush(self) -> None:
        pass


async def _in_daemon_thread(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a blocking call in a daemon thread; when cancelled, leave the thread running. Raises the call's OSError.

    The process can exit while a daemon thread still blocks on a client that neither reads nor closes its end. It would
    have to wait for an executor's thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | OSError) -> None:
        if future.done():
            return
        if isinstance(result, OSError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def run() -> None:
        result: T | OSError
        try:
            result = function(*arguments)
        except OSError as error:
            result = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="stdio", daemon=True).start()
    return await future
