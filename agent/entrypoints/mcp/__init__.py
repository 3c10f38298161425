"""`mcp`: the server that a coding assistant starts, and speaks MCP with over standard input and output.

Light by design: the SDK is imported by this command alone, and what a call needs by the first call.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio
import structlog

from agent import __version__
from agent.entrypoints.mcp.sdk import Tell, refused, tool_server
from agent.entrypoints.mcp.stdio import claim, streams
from agent.entrypoints.mcp.tools import INSTRUCTIONS, RESTORE_POINTS, STATUS, SYNC, TOOLS
from agent.settings import Loaded

__all__ = ["serve"]

_log = structlog.get_logger()

Document = dict[str, object]


async def serve(loading: Callable[[], Loaded]) -> int:
    """Serve until the client closes its end. Returns 0. `loading` reads the settings, anew at each call.

    Cancelled, or left by its client, it cancels the calls that run, and waits until they have cleaned up.
    """
    server = tool_server(
        name="akosha-agent",
        title="Akosha sync",
        version=__version__,
        instructions=INSTRUCTIONS,
        tools=TOOLS,
        call=_calling(loading),
    )
    async with streams(claim()) as (heard, said):
        await server.run(heard, said, server.create_initialization_options())
    return 0


def _calling(
    loading: Callable[[], Loaded],
) -> Callable[[str, Mapping[str, object], Tell | None], Coroutine[Any, Any, Document]]:
    async def call(name: str, given: Mapping[str, object], tell: Tell | None) -> Document:
        from agent.entrypoints.mcp import calls  # noqa: PLC0415 - clients wait for the handshake, not for this

        if name == SYNC:
            document = await _seen_through(calls.sync(loading, given, tell), SYNC)
        elif name == STATUS:
            document = await _seen_through(calls.status(loading), STATUS)
        elif name == RESTORE_POINTS:
            document = await _seen_through(calls.restore_points(loading), RESTORE_POINTS)
        else:
            there_are = ", ".join(str(tool["name"]) for tool in TOOLS)
            raise refused(f"there is no tool {name}; there are {there_are}")
        return _result(document)

    return call


def _result(document: Document) -> Document:
    text = json.dumps(document, indent=2, default=str, ensure_ascii=False)
    text = text.encode(errors="replace").decode()  # a path may hold what is no Unicode
    return {"content": [{"type": "text", "text": text}], "structuredContent": json.loads(text)}


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
