"""The command line: the list of commands. The module of a command is imported when that command is chosen."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from agent import __version__
from agent.entrypoints.cli.options import HELP_OPTIONS, Verbose

COMMANDS = {
    "run": ("cli.run", "Watch the databases and sync what changes, until stopped (Ctrl-C or SIGTERM)."),
    "sync": ("cli.sync", "Sync once, now. A running agent does the sync; the result is the same."),
    "status": ("cli.status", "Show the agent, what is pending, the last uploads, and what prevents the next."),
    "events": ("cli.events", "Show requests and their results, oldest first; or follow results, here and elsewhere."),
    "memories": ("cli.memories", "Show how many memories Akosha has, and which wait or were refused, and why."),
    "config": ("cli.config", "Show every setting, its value and where it came from. Secrets are masked."),
    "mcp": ("mcp.command", "Serve a coding assistant: an MCP server (stdio) with tools to sync and show the status."),
    "react": ("cli.react", "On Akosha's side: bring every upload in the bucket into Akosha, until stopped."),
    "demo": ("cli.demo", "Show how it works: a scratch database, the agent, a directory as the cloud."),
    "verify": (
        "cli.verify",
        "Check that an upload is whole in the bucket. Exits with 0 (whole), 1 (damaged) or 2 (usage).",
    ),
    "doctor": ("doctor.run", "Check settings, directories, servers and services, and name the cure of each problem."),
    "restore": ("cli.restore", "Restore the databases of an upload as files: checked, and never over what is in use."),
    "prune": ("cli.prune", "Delete old uploads of this system, all but those that the rules keep; never the newest."),
    "uploads": ("cli.uploads", "Show the uploads there are, the newest first; or everything about one."),
    "hook": ("hook.commands", "The session-end hook of Claude Code, which notifies the agent."),
    "service": ("service.commands", "The agent as a service of this user: systemd on Linux, launchd on macOS."),
}
"""Name: the module below `agent.entrypoints` that has the command, or its group, as `app`; and the line in `--help`."""


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, known by their names and summaries until one of them is chosen."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, short_help=summary) for name, (_, summary) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            module = import_module(f"agent.entrypoints.{COMMANDS[name][0]}")
            command = typer.main.get_command(module.app)
        return name, command, rest


app = typer.Typer(
    name="akosha-agent",
    cls=LazyGroup,
    help="Gets every memory that Session-Buddy commits safely to Akosha: watches the databases, copies what changed, "
    "uploads it, and publishes the results.\n\nStart with `akosha-agent demo` (a scratch database, no account). Then "
    "set akosha_cloud_endpoint (and akosha_cloud_bucket), try `akosha-agent sync`, and let `akosha-agent run` keep "
    "watching.",
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
