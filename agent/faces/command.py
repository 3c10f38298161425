"""What all commands have in common: their options, the settings they load, and how they end."""

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

from agent.domain.errors import AkoshaError, SettingsError
from agent.faces import logs
from agent.faces.ending import run_to_end
from agent.settings import Loaded, load

FAILED = 1
USAGE = 2

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the memory databases are. Default: ~/.claude/data",
        show_default=False,
        readable=False,  # one that is closed to us may be opened yet: the agent says what is wrong, and waits
    ),
]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="Where the agent keeps its ledger and copies.", show_default=False)
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="A settings file (YAML), before all other files.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def load_settings(
    data_dir: Path | None,
    state_dir: Path | None,
    settings_file: Path | None,
    *,
    quiet: bool = False,
    to_file: bool = False,
) -> Loaded:
    """Read the settings, log what the user should hear; what is wrong with them ends the command with 2.

    `to_file`: this command logs to the file that they name.
    """
    try:
        loaded = read_settings(data_dir, state_dir, settings_file, cwd=Path.cwd(), quiet=quiet, to_file=to_file)
    except SettingsError as error:
        die(error)
    for warning in loaded.warnings:
        structlog.get_logger().warning("settings", warning=warning)
    return loaded


def read_settings(
    data_dir: Path | None,
    state_dir: Path | None,
    settings_file: Path | None,
    *,
    cwd: Path,
    quiet: bool,
    to_file: bool = False,
) -> Loaded:
    """Read the settings, and let the logs follow them; none of their secrets is shown from now on.

    Raises SettingsError; then the logs go on as they were.
    """
    given = {"agent_data_dir": data_dir, "agent_state_dir": state_dir}
    loaded = load(
        command_line={key: str(value) for key, value in given.items() if value is not None},
        settings_file=settings_file,
        environ=os.environ,
        cwd=cwd,
        home=Path.home(),
    )
    logs.hide(*logs.known_secrets(loaded.settings, os.environ))
    level = loaded.settings.agent_log_level
    if quiet and loaded.origins.get("agent_log_level", "default") == "default":
        level = "WARNING"
    logs.configure(level, loaded.settings.agent_log_format, logs.LogPlace.of(loaded.settings) if to_file else None)
    return loaded


def finish(work: Coroutine[None, None, int], *, stopped: int | None = None) -> NoReturn:
    """Do the work and exit with its code; told to stop, with `stopped`, or 128 + the signal's number."""
    try:
        code = run_to_end(work, stopped=stopped)
    except AkoshaError as error:
        die(error)
    raise typer.Exit(code)


def die(error: AkoshaError) -> NoReturn:
    """Say what is wrong, on stderr and where the log is, and exit with 1, or 2 where it is the settings."""
    if logs.goes_to_file():
        structlog.get_logger().critical("ended_by_error", error=error.message, hint=error.hint)
    typer.echo(f"akosha-agent: {logs.redacted(str(error))}", err=True)
    raise typer.Exit(USAGE if isinstance(error, SettingsError) else FAILED) from error
