"""`mcp`: the MCP server that a coding assistant starts."""

import sys

import typer

from agent.entrypoints import logs
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.mcp.server import serve

app = CommandGroup()

ADD = "claude mcp add --scope user akosha-agent -- akosha-agent mcp"


@app.command(stopped=0)
async def mcp(options: Options) -> int:
    """Serve a coding assistant: an MCP server (stdio) with tools to sync and show the status.

    To add it: claude mcp add --scope user akosha-agent -- akosha-agent mcp
    """
    if sys.stdin.isatty():
        typer.echo(f"this speaks MCP, for a program; to add it: {ADD}", err=True)
    logs.configure("INFO" if options.verbose else "WARNING", "auto")
    return await serve(lambda: options.read(LogMode.WARNINGS))
