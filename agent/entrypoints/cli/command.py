"""Shared by all commands: common options, loading of the settings, error handling and exit codes.

A command that runs once prints its output and logs only with `-v`. A command that keeps running (`run`, `react`,
`events --follow`) logs.
"""

import functools
import gc
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import structlog
import typer

from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.plain_text import printable
from agent.entrypoints import logs
from agent.entrypoints.cli.options import HELP_OPTIONS, DataDir, SettingsFile, StateDir, Verbose
from agent.entrypoints.cli.streams import OutputError
from agent.entrypoints.shutdown import run_to_end
from agent.settings import Loaded, Settings, load

FAILED = 1
USAGE = 2

Function = TypeVar("Function", bound=Callable[..., Any])


class LogMode(Enum):
    """What a command logs without `-v`. With `-v` it logs at the level of the settings."""

    NOTHING = auto()
    WARNINGS = auto()
    """Warnings and errors, unless akosha_agent_log_level is set."""
    SETTING = auto()


def _working_directory() -> Path:
    """Return the working directory; if it was deleted, the name that it had, where no file exists."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path(os.environ.get("PWD") or "/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The common options of a command line, and the directory that relative paths are resolved against."""

    data_dir: Path | None = None
    state_dir: Path | None = None
    settings_file: Path | None = None
    verbose: bool = False
    cwd: Path = field(default_factory=_working_directory)

    def read(self, mode: LogMode, *, to_file: bool = False, on_terminal: logs.Renderer | None = None) -> Loaded:
        """Read the settings and configure logging from them; their secrets are masked in all later log lines.

        With `to_file`, log to the file of akosha_agent_log_file, if set, at the level of the settings. `on_terminal`
        renders entries on a terminal, without `-v`. Raises SettingsError; logging is then unchanged.
        """
        directories = {"agent_data_dir": self.data_dir, "agent_state_dir": self.state_dir}
        loaded = load(
            command_line={key: str(value) for key, value in directories.items() if value is not None},
            settings_file=self.settings_file,
            environ=os.environ,
            cwd=self.cwd,
            home=Path.home(),
        )
        logs.hide(*logs.known_secrets(loaded.settings, os.environ))
        level: str = loaded.settings.agent_log_level
        location = logs.LogLocation.of(loaded.settings) if to_file else None
        if not self.verbose:
            if mode is LogMode.NOTHING and location is None:
                level = logs.NOTHING
            elif mode is LogMode.WARNINGS and loaded.origins.get("agent_log_level", "default") == "default":
                level = "WARNING"
        render = None if self.verbose else on_terminal
        logs.configure(level, loaded.settings.agent_log_format, location, on_terminal=render)
        return loaded

    def load(
        self,
        mode: LogMode = LogMode.NOTHING,
        *,
        to_file: bool = False,
        on_terminal: logs.Renderer | None = None,
    ) -> Loaded:
        """Read the settings as `read` does, and print or log their warnings. Raises SettingsError."""
        loaded = self.read(mode, to_file=to_file, on_terminal=on_terminal)
        for warning in loaded.warnings:
            if mode is LogMode.NOTHING:
                typer.echo(f"warning: {printable(logs.redacted(warning))}", err=True)
            else:
                structlog.get_logger().warning("settings", warning=warning)
        return loaded


class CommandGroup(typer.Typer):
    """Commands with `-v` and, if their function has a parameter for them, the common options."""

    def __init__(self, **typer_options: Any) -> None:
        super().__init__(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS, **typer_options)

    def command(
        self, name: str | None = None, *, stopped: int | None = None, data_dir: bool = True, **typer_options: Any
    ) -> Callable[[Function], Function]:
        """Register a function as a command; the function itself is not changed.

        A parameter of type `Options` gets `--data-dir` (unless `data_dir` is false), `--state-dir` and `--settings`;
        a parameter of type `Settings` gets the settings loaded with them; `context: typer.Context` gets typer's
        context. SIGTERM or Ctrl-C cancels a coroutine function; the exit code is then `stopped` (None: 128 + the
        signal's number). An int that the function returns is the exit code. An AkoshaError is printed; the exit code
        is 2 for a SettingsError, else 1.
        """

        def register(function: Function) -> Function:
            summary = " ".join(
                (inspect.getdoc(function) or "").partition("\n\n")[0].split()
            )  # click would shorten it in lists
            add = super(CommandGroup, self).command(name, short_help=summary, **typer_options)
            add(_with_common_options(function, stopped, data_dir=data_dir))
            return function

        return register

    def callback(self, **typer_options: Any) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            super(CommandGroup, self).callback(**typer_options)(_with_common_options(function))
            return function

        return register


def _with_common_options(
    function: Callable[..., Any], stopped: int | None = None, *, data_dir: bool = True
) -> Callable[..., Any]:
    """Return the function wrapped, with a signature from which typer derives the options."""
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())
    injected = next((one for one in own if one.annotation in (Options, Settings)), None)
    takes_context = any(one.annotation is typer.Context for one in own)
    common: dict[str, Any] = {}
    if injected is not None:
        own.remove(injected)
        common = ({"data_dir": DataDir} if data_dir else {}) | {"state_dir": StateDir, "settings_file": SettingsFile}

    @functools.wraps(function)
    def call(*, context: typer.Context, verbose: bool = False, **given: Any) -> None:
        gc.freeze()  # never collect what was imported, not even at exit: a tenth of the run time of `status`
        gc.enable()  # `agent.__main__` disables it during imports
        options = Options(**{name: given.pop(name) for name in common}, verbose=verbose or _is_verbose(context.parent))
        try:
            if injected is not None:
                given[injected.name] = options if injected.annotation is Options else options.load().settings
            if takes_context:
                given["context"] = context
            result = function(**given)
            if inspect.iscoroutine(result):
                result = run_to_end(result, stopped=stopped)
        except AkoshaError as error:
            die(error)
        if isinstance(result, int):
            raise typer.Exit(result)

    def parameter(name: str, annotation: object, **default: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, **default)

    parameters = [
        parameter("context", typer.Context),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.annotation is not typer.Context),
        *(parameter(name, annotation, default=None) for name, annotation in common.items()),
        parameter("verbose", Verbose, default=False),
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what typer reads
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _is_verbose(context: Any) -> bool:
    """Return whether `-v` was given to a group above the command."""
    while context is not None:
        if context.params.get("verbose"):
            return True
        context = context.parent
    return False


def die(error: AkoshaError) -> NoReturn:
    """Print the error and exit with 2 for a SettingsError, else 1. If the log is a file, log the error there, too.

    An OutputError is raised again: `agent.__main__` handles it.
    """
    if isinstance(error, OutputError):
        raise error
    if logs.goes_to_file():
        structlog.get_logger().critical("ended_by_error", error=error.message, hint=error.hint)
    typer.echo(f"akosha-agent: {logs.redacted(str(error))}", err=True)
    raise typer.Exit(USAGE if isinstance(error, SettingsError) else FAILED) from error
