"""`mcp`: the server that a coding assistant starts, and speaks MCP with over standard input and output.

Light by design: the SDK is imported by this command alone, and what a call needs by the first call.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)

from agent import __version__
from agent.faces.mcp_server.stdio import claim, streams
from agent.faces.mcp_server.tools import INSTRUCTIONS, RESTORE_POINTS, STATUS, SYNC, TOOLS
from agent.settings import Loaded

__all__ = ["serve"]

_log = structlog.get_logger()

Context = ServerRequestContext[dict[str, Any]]
Document = dict[str, object]


async def serve(loading: Callable[[], Loaded]) -> int:
    """Serve until the client closes its end. Returns 0. `loading` reads the settings, anew at each call.

    Cancelled, or left by its client, it cancels the calls that run, and waits until they have cleaned up.
    """
    server = Server(
        "akosha-agent",
        title="Akosha sync",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=_list,
        on_call_tool=_calling(loading),
    )
    async with streams(claim()) as (heard, said):
        await server.run(heard, said, server.create_initialization_options())
    return 0


async def _list(_: Context, __: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(tools=TOOLS)


def _calling(
    loading: Callable[[], Loaded],
) -> Callable[[Context, CallToolRequestParams], Coroutine[Any, Any, CallToolResult]]:
    async def call(context: Context, params: CallToolRequestParams) -> CallToolResult:
        from agent.faces.mcp_server import calls  # noqa: PLC0415 - clients wait for the handshake, not for this

        given = params.arguments or {}
        if params.name == SYNC:
            wanted = context.meta is not None and "progress_token" in context.meta
            tell = context.session.report_progress if wanted else None
            document = await _seen_through(calls.sync(loading, given, tell), SYNC)
        elif params.name == STATUS:
            document = await _seen_through(calls.status(loading), STATUS)
        elif params.name == RESTORE_POINTS:
            document = await _seen_through(calls.restore_points(loading), RESTORE_POINTS)
        else:
            there_are = ", ".join(tool.name for tool in TOOLS)
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name}; there are {there_are}")
        return _result(document)

    return call


def _result(document: Document) -> CallToolResult:
    text = json.dumps(document, indent=2, default=str, ensure_ascii=False)
    text = text.encode(errors="replace").decode()  # a path may hold what is no Unicode
    return CallToolResult(content=[TextContent(text=text)], structured_content=json.loads(text))


async def _seen_through(work: Coroutine[Any, Any, Document], name: str) -> Document:
    """Do it in a task of its own; cancelled, wait until that has cleaned up.

    The SDK cancels by anyio's rules: every wait is cut short, again and again, those of cleaning up too.
    """
    task = asyncio.create_task(work, name=name)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        _log.info("call_cancelled", tool=name)
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            _log.error("call_failed", tool=name, exc_info=error)
        raise
    return task.result()
