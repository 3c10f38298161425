"""The list of commands. The module of a command is imported only when that command runs."""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from agent import __version__
from agent.entrypoints.cli.options import HELP_OPTIONS, Verbose

COMMANDS = {
    "init": (
        "init.command",
        "Set the agent up: choose where memories go, test that, store it, and sync for the first time.",
    ),
    "run": ("cli.run", "Watch the databases and sync changes until stopped (Ctrl-C or SIGTERM)."),
    "sync": ("cli.sync", "Sync once, now. If an agent is running, it does the sync, with its own settings."),
    "status": ("cli.status", "Show whether all memories are safe, what is under way, and what blocks the next sync."),
    "open": ("cli.open", "Open the page of the running agent in a browser: its status, progress, history and uploads."),
    "events": ("cli.events", "Show sync requests and results, oldest first; or follow results from any machine."),
    "fleet": (
        "cli.fleet",
        "Show every system in the bucket and on NATS: its last result, failures, version, and how far ingestion is.",
    ),
    "memories": ("cli.memories", "Show how many memories each target has received, and which are waiting or refused."),
    "config": (
        "cli.config",
        "Show the settings that are set, their values and sources; or change the agent's own settings.",
    ),
    "mcp": ("mcp.command", "Run an MCP server (stdio) for a coding assistant: sync, status and restore points."),
    "react": ("cli.react", "Run on the Akosha side: ingest every upload in the bucket into Akosha until stopped."),
    "demo": ("cli.demo", "Demonstrate the agent with a scratch database and a local directory as the bucket."),
    "verify": ("cli.verify", "Verify that an upload in the bucket is complete and undamaged."),
    "doctor": ("doctor.run", "Check settings, directories, servers and services, and show how to fix each problem."),
    "restore": ("cli.restore", "Restore and verify the databases of an upload; never replaces a database in use."),
    "prune": ("cli.prune", "Delete the old uploads of this system that no retention rule keeps; never the newest."),
    "uploads": ("cli.uploads", "List the uploads in the bucket, newest first; or show one in detail."),
    "hook": ("hook.commands", "Manage the session-end hook of Claude Code, which notifies the agent."),
    "service": ("service.commands", "Run the agent as a service of this user: systemd on Linux, launchd on macOS."),
}
"""By name: the module below `agent.entrypoints` whose `app` is the command or group, and its line in `--help`."""


class LazyGroup(TyperGroup):
    """The commands of COMMANDS: names and summaries only, until one of them runs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, short_help=summary) for name, (_, summary) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            _import_structlog_without_rich()
            module = import_module(f"agent.entrypoints.{COMMANDS[name][0]}")
            command = typer.main.get_command(module.app)
        return name, command, rest


def _import_structlog_without_rich() -> None:
    """Import structlog without rich, which it uses only for tracebacks: a tenth of the start-up time."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # importing it raises ImportError, which structlog handles
    import structlog  # noqa: F401, PLC0415

    del sys.modules["rich"]


app = typer.Typer(
    name="akosha-agent",
    cls=LazyGroup,
    help="Back up the memories of Session-Buddy to a bucket, a directory or Akosha. The agent watches the databases, "
    "uploads what changed, and publishes the results as events.\n\n"
    "To try it, run `akosha-agent demo` (a scratch database, no account). To set it up, run `akosha-agent init`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"akosha-agent {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    del version, verbose
