"""The command line. Each command loads the settings, does one thing, and exits 0, 1 (failed) or 2 (usage, settings)."""

import json
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from agent import __version__
from agent.entrypoints import logs
from agent.entrypoints.cli.archive_commands import uploads, verify
from agent.entrypoints.cli.command import (
    AsJson,
    CommandGroup,
    DataDir,
    SettingsFile,
    StateDir,
    finish,
    load_settings,
    read_settings,
    verbose,
)
from agent.entrypoints.cli.prune_command import prune
from agent.entrypoints.cli.restore_command import restore
from agent.entrypoints.doctor.commands import doctor
from agent.entrypoints.hook.commands import hook
from agent.entrypoints.service.commands import service
from agent.settings import settings_table

app = CommandGroup(
    name="akosha-agent",
    help="Gets every memory that Session-Buddy commits safely to Akosha: watches the databases, copies what changed, "
    "uploads it, and tells what happened.\n\nStart with [bold]akosha-agent demo[/bold] (a scratch database, no "
    "account). Then set akosha_cloud_endpoint (and akosha_cloud_bucket), try [bold]akosha-agent sync[/bold], and let "
    "[bold]akosha-agent run[/bold] keep watching.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class Method(StrEnum):
    """How to deliver."""

    AUTO = "auto"
    CLOUD = "cloud"
    HTTP = "http"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"akosha-agent {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def run(data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None) -> None:
    """Watch the databases and sync what changes, until stopped (Ctrl-C or SIGTERM)."""
    from agent.entrypoints.cli.run import run_until_stopped  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, to_file=True)
    again = partial(read_settings, data_dir, state_dir, settings, cwd=Path.cwd(), to_file=True)
    finish(run_until_stopped(loaded.settings, again), stopped=0)


@app.command()
def sync(
    method: Annotated[Method, typer.Option(help="How to deliver; auto follows the settings.")] = Method.AUTO,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Fail instead of trying the next method.")] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Own the uploads of this system id from now on, in place of the machine or state directory that does.",
        ),
    ] = False,
    new_target: Annotated[
        bool,
        typer.Option("--new-target", help="The disk, directory or bucket was replaced on purpose: upload everything."),
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Sync once, now. Where an agent runs, it does it; the result is the same."""
    from agent.entrypoints.cli.sync import sync_once  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    finish(
        sync_once(
            loaded.settings,
            method=method.value,
            enable_fallback=not no_fallback,
            take_over=take_over,
            new_target=new_target,
            as_json=as_json,
        )
    )


@app.command()
def status(
    as_json: AsJson = False, data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None
) -> None:
    """Show who runs, what is pending, what was uploaded last, and what stands in the way."""
    from agent.entrypoints.cli.status import show_status  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    finish(show_status(loaded.settings, as_json=as_json))


@app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing events as they happen.")] = False,
    as_json: AsJson = False,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="SYSTEM",
            help="Follow the results of this system, or of all ('*', in quotes), over NATS.",
            show_default=False,
        ),
    ] = None,
    durable: Annotated[
        str | None,
        typer.Option(
            "--durable",
            metavar="NAME",
            help="Follow results over NATS, which keeps the place under this name: what came meanwhile is shown, too.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run a shell command for each result, its event (JSON) on stdin, until that exits with 0.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Show what happened: requests and their results, oldest first; or follow results, here and elsewhere.

    With --system, --durable or --exec: results alone, until Ctrl-C.
    """
    listing = system is None and durable is None and command is None
    once = listing and not follow
    loaded = load_settings(data_dir, state_dir, settings, quiet=once, stays=not once)
    if listing:
        from agent.entrypoints.cli.events import show_events  # noqa: PLC0415 - what only this command needs

        finish(show_events(loaded.settings, follow=follow, as_json=as_json))
    from agent.entrypoints.cli.consume import consume  # noqa: PLC0415 - as above

    finish(consume(loaded.settings, system=system, durable=durable, command=command, as_json=as_json))


@app.command()
def memories(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that the server refused.")] = False,
    again: Annotated[
        bool,
        typer.Option("--send-again", help="Have all sent again to a server that has lost them. Stop the agent first."),
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Show what Akosha has of the memories, and which of them wait or were refused, and why."""
    from agent.entrypoints.cli.memories import send_again, show_memories  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    if again:
        finish(send_again(loaded.settings))
    finish(show_memories(loaded.settings, failed=failed, as_json=as_json))


@app.command()
def config(
    as_json: AsJson = False, data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None
) -> None:
    """Show every setting, its value and where it came from. Secrets are masked."""
    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    table = settings_table(loaded)
    if as_json:
        document = {row.key: {"value": row.value, "origin": row.origin, "default": row.default} for row in table}
        typer.echo(json.dumps({"settings": document, "warnings": list(loaded.warnings)}, indent=2))
        return
    from rich.table import Table  # noqa: PLC0415 - only people need tables

    from agent.entrypoints.cli.terminal import table_console  # noqa: PLC0415 - as above

    shown = Table(box=None, pad_edge=False)
    shown.add_column("setting", no_wrap=True)
    shown.add_column("value", overflow="fold")
    shown.add_column("from", overflow="fold")
    for row in table:
        shown.add_row(row.key, row.value or '""', row.origin, style=None if row.origin != "default" else "dim")
    table_console().print(shown)


@app.command()
def mcp(data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None) -> None:
    """Serve a coding assistant: the MCP server (stdio) that it starts, with the tools to sync and to see how it stands.

    To add it: claude mcp add --scope user akosha-agent -- akosha-agent mcp
    """
    from agent.entrypoints.mcp import serve  # noqa: PLC0415 - what only this command needs

    if sys.stdin.isatty():
        how = "claude mcp add --scope user akosha-agent -- akosha-agent mcp"
        typer.echo(f"this speaks MCP, for a program; to add it: {how}", err=True)
    logs.configure("INFO" if verbose() else "WARNING", "auto")
    cwd = Path.cwd()
    finish(serve(lambda: read_settings(data_dir, state_dir, settings, cwd=cwd, stays=True)), stopped=0)


@app.command()
def react(
    system: Annotated[
        list[str] | None,
        typer.Option("--system", metavar="SYSTEM", help="React to this system alone; may be repeated. Default: all."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Take what there is now, say what came of it, and end.")] = False,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """On Akosha's side: bring every upload in the bucket into Akosha, as soon as it is told of, until stopped.

    Beside an agent on the same machine it needs a --state-dir of its own.
    """
    from agent.entrypoints.cli.react import react as work  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(None, state_dir, settings, quiet=once, to_file=True)
    finish(work(loaded.settings, systems=frozenset(system or ()), once=once), stopped=None if once else 0)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch directory, to look around in.")] = False,
) -> None:
    """See it work: a scratch database that another process writes, the agent, a directory as the cloud."""
    from agent.entrypoints.demo.run import run_demo  # noqa: PLC0415 - what only this command needs

    raise typer.Exit(run_demo(keep=keep))


app.add_typer(uploads, name="uploads")
app.command()(verify)
app.command()(doctor)
app.command()(restore)
app.command()(prune)
app.add_typer(hook, name="hook")
app.add_typer(service, name="service")
