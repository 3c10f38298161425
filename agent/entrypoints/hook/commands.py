"""The commands of `akosha-agent hook`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from agent.bootstrap.home import RUN, Home
from agent.entrypoints.cli.command import FAILED, USAGE, CommandGroup
from agent.entrypoints.cli.options import AsJson, StateDir
from agent.entrypoints.hook import install as installer
from agent.entrypoints.hook.claude_settings import settings_file
from agent.entrypoints.hook.hook_command import hook_command
from agent.entrypoints.hook.session_end import main
from agent.entrypoints.hook.status import UNINSTALL, InstalledHook, State, hook_status, installed_hook, runs_args
from agent.entrypoints.service.program import check_permanent
from agent.settings import Settings

app = CommandGroup(help="Manage the session-end hook of Claude Code, which notifies the agent.", no_args_is_help=True)

ClaudeSettings = Annotated[
    Path | None,
    typer.Option(
        "--settings-file",
        help="Claude Code's settings file. Default: settings.json in $CLAUDE_CONFIG_DIR, or in ~/.claude",
        show_default=False,
        dir_okay=False,
    ),
]


@app.command("session-end")
def session_end(
    state_dir: StateDir = None,
    system_id: Annotated[
        str | None, typer.Option("--system-id", help="The system ID, like akosha_system_id.", show_default=False)
    ] = None,
) -> None:
    """Notify the agent that a session has ended. The hook runs this, with Claude Code's JSON on standard input.

    Always exits with 0 and prints nothing to standard output.
    """
    # `agent.__main__` calls `main` before this module is imported; this command serves `-v` and `--help`.
    given = {"--state-dir": state_dir, "--system-id": system_id}
    main([word for name, value in given.items() if value is not None for word in (name, str(value))])


@app.command()
def install(settings: Settings, claude_settings: ClaudeSettings = None) -> None:
    """Add the hook to Claude Code's settings, unless its plugin has it. It notifies the agent when a session ends."""
    path = _path(claude_settings)
    found = _installed(path)
    if found.plugin and found.plugin.problem(settings.agent_state_dir) is None:
        typer.echo(f"not needed: the plugin {found.plugin.id} of Claude Code has this hook")
        if found.commands:
            typer.echo(f"hint     {path} has it, too: {UNINSTALL}")
        return
    check_permanent(hook_command(settings).program, Path.home(), os.environ)
    home = Home.of(settings)
    home.prepare()  # the hook may run before the agent's first start, and its notes contain the system ID
    with_args = runs_args(os.environ)
    if with_args is None:  # the version is unknown: keep the installed form
        with_args = any(one.with_args for one in found.commands)
    command = hook_command(settings, with_args=with_args)
    change = installer.install(path, command, settings.agent_state_dir)
    holder = home.holder()
    typer.echo(f"{'already installed' if change.outcome is installer.Outcome.UNCHANGED else change.outcome} in {path}")
    typer.echo(f"command  {command}")
    if change.backup:
        typer.echo(f"backup   {change.backup}")
    if holder is None or holder.command != RUN:
        typer.echo(
            "agent    not running: sessions that end are noted, and uploaded when it starts. To start it: akosha-agent "
            "service install, or akosha-agent run"
        )


@app.command()
def uninstall(settings: Settings, claude_settings: ClaudeSettings = None) -> None:
    """Remove the hook from Claude Code's settings; other settings are not changed."""
    path = _path(claude_settings)
    change = installer.uninstall(path, settings.agent_state_dir)
    typer.echo(f"not installed in {path}" if change.outcome is installer.Outcome.UNCHANGED else f"removed from {path}")
    if change.deleted:
        typer.echo("file     deleted: hook install had created it, and it has no other settings")
    if change.backup:
        typer.echo(f"backup   {change.backup}")
    if plugin := _installed(path).plugin:
        typer.echo(f"hint     the plugin of Claude Code has the hook, too: claude plugin uninstall {plugin.id}")


@app.command()
def status(settings: Settings, claude_settings: ClaudeSettings = None, as_json: AsJson = False) -> int:
    """Show whether the hook is installed and matches the agent's settings.

    Exits with 0 if it does, 1 if it does not, 2 if Claude Code's settings file cannot be read.
    """
    installed = _installed(_path(claude_settings))
    known = runs_args(os.environ) if any(one.with_args for one in installed.commands) else None
    current = hook_status(installed, hook_command(settings), runs_args=known)
    if as_json:
        typer.echo(json.dumps(current.document(), indent=2))
    else:
        typer.echo(f"hook     {current.state}{f': {current.reason}' if current.reason else ''}")
        typer.echo(f"file     {installed.path}")
        for command in installed.commands:
            typer.echo(f"command  {command}")
        if current.hint:
            typer.echo(f"hint     {current.hint}")
    return USAGE if installed.error else 0 if current.state is State.INSTALLED else FAILED


def _path(given: Path | None) -> Path:
    return settings_file(os.environ, Path.home()) if given is None else given.expanduser().absolute()


def _installed(path: Path) -> InstalledHook:
    return installed_hook(path, os.environ, Path.home())
