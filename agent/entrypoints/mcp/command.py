"""`mcp`: run the MCP server."""

import sys

import typer

from agent.entrypoints import logs
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.mcp.server import serve

app = CommandGroup()

ADD = "claude mcp add --scope user akosha-agent -- akosha-agent mcp"


@app.command(stopped=0)
async def mcp(options: Options) -> int:
    """Run an MCP server (stdio) for a coding assistant: sync, status and restore points.

    To add it to Claude Code:

    \b
    claude mcp add --scope user akosha-agent -- akosha-agent mcp
    """  # noqa: D301 - \b keeps the command on one line
    if sys.stdin.isatty():
        typer.echo(f"this is an MCP server for a coding assistant; to add it to Claude Code: {ADD}", err=True)
    logs.configure("INFO" if options.verbose else "WARNING", "auto")
    return await serve(lambda: options.read(LogMode.WARNINGS))
