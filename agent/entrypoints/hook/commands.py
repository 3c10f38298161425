"""The commands of `akosha-agent hook`. Each imports what it needs: the start of a command must stay fast."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from agent.domain.errors import AkoshaError
from agent.entrypoints.cli.command import (
    FAILED,
    USAGE,
    AsJson,
    CommandGroup,
    DataDir,
    SettingsFile,
    StateDir,
    die,
    load_settings,
)

hook = CommandGroup(
    help="The session-end hook of Claude Code, which notifies the agent.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ClaudeSettings = Annotated[
    Path | None,
    typer.Option(
        "--settings-file",
        help="Claude Code's settings file. Default: settings.json in $CLAUDE_CONFIG_DIR, or in ~/.claude",
        show_default=False,
        dir_okay=False,
    ),
]


@hook.command("session-end")
def session_end(
    state_dir: StateDir = None,
    system_id: Annotated[
        str | None, typer.Option("--system-id", help="The system, as akosha_system_id.", show_default=False)
    ] = None,
) -> None:
    """Notify the agent that a session has ended. The hook runs this, with Claude Code's JSON on standard input.

    Always exits with 0, and prints nothing.
    """
    # `agent.__main__` calls it before this module is imported; this is for `-v`, `--help` and the like.
    from agent.entrypoints.hook.session_end import main  # noqa: PLC0415

    given = {"--state-dir": state_dir, "--system-id": system_id}
    main([word for name, value in given.items() if value is not None for word in (name, str(value))])


@hook.command()
def install(
    settings_file: ClaudeSettings = None,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Add the hook to Claude Code's settings: it notifies the agent of every session that ends."""
    from agent.bootstrap.home import RUN, Home  # noqa: PLC0415
    from agent.entrypoints.hook import install as installer  # noqa: PLC0415
    from agent.entrypoints.hook.command_line import hook_command  # noqa: PLC0415
    from agent.entrypoints.hook.status import installed_hook, runs_args  # noqa: PLC0415

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    path = _path(settings_file)
    try:
        home = Home.of(loaded.settings)
        home.prepare()  # the hook may run before the agent has: its notes name the system
        with_args = runs_args(os.environ)
        if with_args is None:  # the version is unknown: the installed form stays
            with_args = any(one.with_args for one in installed_hook(path).commands)
        command = hook_command(loaded.settings, with_args=with_args)
        change = installer.install(path, command, loaded.settings.agent_state_dir)
        holder = home.holder()
    except AkoshaError as error:
        die(error)
    typer.echo(f"{'installed already' if change.outcome is installer.Outcome.UNCHANGED else change.outcome} in {path}")
    typer.echo(f"command  {command}")
    if change.backup:
        typer.echo(f"backup   {change.backup}")
    if holder is None or holder.command != RUN:
        typer.echo(
            "agent    none runs: the notes of ended sessions wait for it. To start it: akosha-agent service install, "
            "or akosha-agent run"
        )


@hook.command()
def uninstall(
    settings_file: ClaudeSettings = None,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Remove the hook from Claude Code's settings, and nothing else."""
    from agent.entrypoints.hook import install as installer  # noqa: PLC0415

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    path = _path(settings_file)
    try:
        change = installer.uninstall(path, loaded.settings.agent_state_dir)
    except AkoshaError as error:
        die(error)
    typer.echo(f"{'not installed' if change.outcome is installer.Outcome.UNCHANGED else change.outcome} in {path}")
    if change.backup:
        typer.echo(f"backup   {change.backup}")


@hook.command()
def status(
    settings_file: ClaudeSettings = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Show whether the hook is installed as the settings ask for.

    Exits with 0 if it is, 1 if it is not, 2 if its file cannot be read.
    """
    from agent.entrypoints.hook.command_line import hook_command  # noqa: PLC0415
    from agent.entrypoints.hook.status import State, hook_status, installed_hook, runs_args  # noqa: PLC0415

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    installed = installed_hook(_path(settings_file))
    known = runs_args(os.environ) if any(one.with_args for one in installed.commands) else None
    now = hook_status(installed, hook_command(loaded.settings), runs_args=known)
    if as_json:
        typer.echo(json.dumps(now.document(), indent=2))
    else:
        typer.echo(f"hook     {now.state}{f': {now.reason}' if now.reason else ''}")
        typer.echo(f"file     {installed.path}")
        for command in installed.commands:
            typer.echo(f"command  {command}")
        if now.hint:
            typer.echo(f"to mend  {now.hint}")
    raise typer.Exit(USAGE if installed.error else 0 if now.state is State.INSTALLED else FAILED)


def _path(given: Path | None) -> Path:
    from agent.entrypoints.hook.claude_settings import settings_file  # noqa: PLC0415

    return settings_file(os.environ, Path.home()) if given is None else given.expanduser().absolute()
