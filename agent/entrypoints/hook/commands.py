"""The commands of `akosha-agent hook`. Light: what a command needs is imported by it."""

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
    help="What a coding assistant runs when a session ends: it tells the agent, and costs nothing.",
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
    """Tell the agent that a session is over: what the hook runs, with Claude Code's JSON on standard input.

    Exits with 0 whatever happens, and prints nothing.
    """
    from agent.entrypoints.hook.session_end import main  # noqa: PLC0415 - `agent.__main__` comes here first, past all this

    given = {"--state-dir": state_dir, "--system-id": system_id}
    main([word for name, value in given.items() if value is not None for word in (name, str(value))])


@hook.command()
def install(
    settings_file: ClaudeSettings = None,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Have Claude Code tell the agent of every session that ends. Everything else in its settings stays as it is."""
    from agent.bootstrap.home import RUN, Home  # noqa: PLC0415
    from agent.entrypoints.hook.claude_code import runs_args  # noqa: PLC0415 - what only this command needs
    from agent.entrypoints.hook.claude_settings import look  # noqa: PLC0415
    from agent.entrypoints.hook.command_line import hook_command  # noqa: PLC0415
    from agent.entrypoints.hook.install import Outcome, install as put  # noqa: PLC0415

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    path = _path(settings_file)
    try:
        home = Home.of(loaded.settings)
        home.prepare()  # the hook may come before the agent: it must know for whom
        with_args = runs_args(os.environ)
        if with_args is None:  # what a version that cannot be asked was found to run stays as it is
            with_args = any(one.with_args for one in look(path).commands)
        command = hook_command(loaded.settings, with_args=with_args)
        change = put(path, command, loaded.settings.agent_state_dir)
        holder = home.holder()
    except AkoshaError as error:
        die(error)
    typer.echo(f"{'installed already' if change.outcome is Outcome.UNCHANGED else change.outcome} in {path}")
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
    """Take the hook out of Claude Code's settings again, and nothing else."""
    from agent.entrypoints.hook.install import Outcome, uninstall as take  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    path = _path(settings_file)
    try:
        change = take(path, loaded.settings.agent_state_dir)
    except AkoshaError as error:
        die(error)
    typer.echo(f"{'not installed' if change.outcome is Outcome.UNCHANGED else change.outcome} in {path}")
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
    """Say whether the hook is installed and as it should be (0), or not (1); 2: its file is not understood."""
    from agent.entrypoints.hook.claude_code import runs_args  # noqa: PLC0415 - what only this command needs
    from agent.entrypoints.hook.claude_settings import look  # noqa: PLC0415
    from agent.entrypoints.hook.command_line import hook_command  # noqa: PLC0415
    from agent.entrypoints.hook.status import hook_status  # noqa: PLC0415

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    found = look(_path(settings_file))
    known = runs_args(os.environ) if any(one.with_args for one in found.commands) else None
    now = hook_status(found, hook_command(loaded.settings), runs_args=known)
    if as_json:
        typer.echo(json.dumps(now.document(), indent=2))
    else:
        typer.echo(f"hook     {now.state}{f': {now.why}' if now.why else ''}")
        typer.echo(f"file     {now.found.path}")
        for command in now.found.commands:
            typer.echo(f"command  {command}")
        if now.hint:
            typer.echo(f"to mend  {now.hint}")
    raise typer.Exit(USAGE if now.found.trouble else 0 if now.well else FAILED)


def _path(given: Path | None) -> Path:
    from agent.entrypoints.hook.claude_code import settings_file  # noqa: PLC0415 - for those who need it

    return settings_file(os.environ, Path.home()) if given is None else given.expanduser().absolute()
