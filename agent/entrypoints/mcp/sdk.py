"""The MCP SDK, of version 1 or 2: the only module that imports it.

Both speak the same protocol over the same two streams. They differ in how a server is given its tools, in the names of
what describes them (tools and results are made from the protocol's own JSON here, which both read), and in how a
message becomes a line.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import mcp.types
from mcp.server.lowlevel import Server
from mcp.shared import exceptions
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

__all__ = ["INVALID_PARAMS", "SessionMessage", "ValidationError", "decoded", "encoded", "refused", "tool_server"]

INVALID_PARAMS = -32602

Document = Mapping[str, object]

Tell = Callable[[float, float | None, str], Awaitable[None]]
"""Sends one notification of progress: done, total, message."""

Call = Callable[[str, Mapping[str, object], Tell | None], Awaitable[Document]]
"""Calls a tool by its name, with its arguments; returns a CallToolResult as JSON. No Tell: no progress is asked for."""

# One of the two versions is installed: what the other has is not there for mypy to see.
_types: Any = mcp.types
_errors: Any = exceptions
_server: Any = Server
_IS_FIRST = hasattr(_errors, "McpError")


def tool_server(
    *, name: str, title: str, version: str, instructions: str, tools: Sequence[Document], call: Call
) -> Any:  # the SDK's own class, of either version
    """Return a server of these tools (as `tools/list` has them), with `run(heard, said, options)` as the SDK has it."""
    described = _types.ListToolsResult.model_validate({"tools": list(tools)})

    if _IS_FIRST:
        server = _server(name, version=version, instructions=instructions)

        async def list_first(_request: Any) -> Any:
            return _types.ServerResult(described)

        async def call_first(request: Any) -> Any:
            context = server.request_context
            token = context.meta.progressToken if context.meta is not None else None

            async def tell(done: float, total: float | None, message: str) -> None:
                await context.session.send_progress_notification(token, done, total, message)

            given = request.params.arguments or {}
            result = await call(request.params.name, given, None if token is None else tell)
            return _types.ServerResult(_types.CallToolResult.model_validate(result))

        # Not by the SDK's decorators: they check arguments on their own, and answer in other words than `call`.
        server.request_handlers[_types.ListToolsRequest] = list_first
        server.request_handlers[_types.CallToolRequest] = call_first
        return server

    async def list_second(_context: Any, _params: Any) -> Any:
        return described

    async def call_second(context: Any, params: Any) -> Any:
        wanted = context.meta is not None and "progress_token" in context.meta
        tell = context.session.report_progress if wanted else None
        result = await call(params.name, params.arguments or {}, tell)
        return _types.CallToolResult.model_validate(result)

    return _server(
        name,
        title=title,
        version=version,
        instructions=instructions,
        on_list_tools=list_second,
        on_call_tool=call_second,
    )


def refused(message: str) -> Exception:
    """Return the error that a call of no tool is answered with."""
    if _IS_FIRST:
        error: Exception = _errors.McpError(_types.ErrorData(code=INVALID_PARAMS, message=message))
    else:
        error = _errors.MCPError(INVALID_PARAMS, message)
    return error


def decoded(line: bytes) -> SessionMessage:
    """Return the message that a line holds. Raises ValidationError."""
    if _IS_FIRST:
        return SessionMessage(_types.JSONRPCMessage.model_validate_json(line))
    return SessionMessage(_types.jsonrpc_message_adapter.validate_json(line, by_name=False))


def encoded(message: SessionMessage) -> bytes:
    """Return the line of a message, its end included."""
    body: Any = message.message
    how = {"exclude_none": True} if _IS_FIRST else {"exclude_unset": True}
    return f"{body.model_dump_json(by_alias=True, **how)}\n".encode()
