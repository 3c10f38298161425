"""What all commands share: their common options, the settings they load, and how they end.

A command that does one thing prints its message and logs nothing, unless `-v` is given. A command that keeps running
(`run`, `react`, one that follows events) logs.
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
from agent.entrypoints import logs
from agent.entrypoints.cli.options import HELP_OPTIONS, DataDir, SettingsFile, StateDir, Verbose
from agent.entrypoints.cli.streams import OutputError
from agent.entrypoints.shutdown import run_to_end
from agent.settings import Loaded, Settings, load

FAILED = 1
USAGE = 2

Function = TypeVar("Function", bound=Callable[..., Any])


class LogMode(Enum):
    """What a command logs without `-v`, which makes it log at the level of the settings."""

    NOTHING = auto()
    WARNINGS = auto()
    """Warnings and errors, unless a setting names a level."""
    SETTING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The common options of a command line, and the directory that relative paths start from."""

    data_dir: Path | None = None
    state_dir: Path | None = None
    settings_file: Path | None = None
    verbose: bool = False
    cwd: Path = field(default_factory=Path.cwd)

    def read(self, mode: LogMode, *, to_file: bool = False) -> Loaded:
        """Read the settings and configure the logs by them; no line shows a secret of theirs from now on.

        `to_file`: log to the file that the settings name, at their level. Raises SettingsError; then the logs stay as
        they were.
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
        logs.configure(level, loaded.settings.agent_log_format, location)
        return loaded

    def load(self, mode: LogMode = LogMode.NOTHING, *, to_file: bool = False) -> Loaded:
        """Do as `read`, and print or log the warnings. Raises SettingsError."""
        loaded = self.read(mode, to_file=to_file)
        for warning in loaded.warnings:
            if mode is LogMode.NOTHING:
                typer.echo(f"warning: {logs.redacted(warning)}", err=True)
            else:
                structlog.get_logger().warning("settings", warning=warning)
        return loaded


class CommandGroup(typer.Typer):
    """Commands that take `-v` and, where their function asks for them, the common options."""

    def __init__(self, **how: Any) -> None:
        super().__init__(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS, **how)

    def command(
        self, name: str | None = None, *, stopped: int | None = None, data_dir: bool = True, **how: Any
    ) -> Callable[[Function], Function]:
        """Register a function as a command; the function itself stays as it is.

        A parameter of type `Options` gets `--data-dir` (unless `data_dir` is false), `--state-dir` and `--settings`;
        one of type `Settings` gets the settings that those load; `context: typer.Context` is typer's. A coroutine
        function runs until it ends; SIGTERM or Ctrl-C cancels it, and the exit code is `stopped` (None: 128 + the
        signal's number). An int that the function returns is the exit code. An AkoshaError is printed; the exit code is
        1, or 2 for the settings.
        """

        def register(function: Function) -> Function:
            summary = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())  # whole in lists, too
            add = super(CommandGroup, self).command(name, short_help=summary, **how)
            add(_with_common_options(function, stopped, data_dir=data_dir))
            return function

        return register

    def callback(self, **how: Any) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            super(CommandGroup, self).callback(**how)(_with_common_options(function))
            return function

        return register


def _with_common_options(
    function: Callable[..., Any], stopped: int | None = None, *, data_dir: bool = True
) -> Callable[..., Any]:
    """Return a function with the signature that typer makes the options of."""
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
        gc.freeze()  # what was imported is never collected, also not at the exit: a tenth of the time of `status`
        gc.enable()  # `agent.__main__` has disabled it for the imports
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
    """Return whether a group above the command was given `-v`."""
    while context is not None:
        if context.params.get("verbose"):
            return True
        context = context.parent
    return False


def die(error: AkoshaError) -> NoReturn:
    """Print the error, log it where the log is a file, and exit with 1, or 2 where it is the settings.

    An OutputError is raised as it is: `agent.__main__` handles it.
    """
    if isinstance(error, OutputError):
        raise error
    if logs.goes_to_file():
        structlog.get_logger().critical("ended_by_error", error=error.message, hint=error.hint)
    typer.echo(f"akosha-agent: {logs.redacted(str(error))}", err=True)
    raise typer.Exit(USAGE if isinstance(error, SettingsError) else FAILED) from error
