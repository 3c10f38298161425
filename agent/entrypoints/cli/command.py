"""What all commands have in common: their options, the settings they load, and how they end.

A command that does one thing and ends prints its message, and no log: `-v` shows that, too. A command that stays
(`run`, `react`, one that follows events) logs.
"""

import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer

from agent.domain.errors import AkoshaError, SettingsError
from agent.entrypoints import logs
from agent.entrypoints.cli.streams import OutputError
from agent.entrypoints.shutdown import run_to_end
from agent.settings import Loaded, load

FAILED = 1
USAGE = 2

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the memory databases are. Default: Session-Buddy's data_dir, else ~/.claude/data",
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
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error what is done.")]

_verbose: ContextVar[bool] = ContextVar("verbose", default=False)

Command = TypeVar("Command", bound=Callable[..., Any])


class CommandGroup(typer.Typer):
    """Commands that all take `-v`, as does the group itself where it has a callback."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Command], Command]:
        return _registering(super().command(name, **how), _for_the_command)

    def callback(self, **how: Any) -> Callable[[Command], Command]:
        return _registering(super().callback(**how), _from_now_on)


Aloud = Callable[[], AbstractContextManager[None]]
"""A block in which the command is verbose."""


@contextmanager
def _for_the_command() -> Iterator[None]:
    token = _verbose.set(True)
    try:
        yield
    finally:
        _verbose.reset(token)


@contextmanager
def _from_now_on() -> Iterator[None]:
    """A group's callback returns before its command runs."""
    _verbose.set(True)
    yield


def _registering(register: Callable[[Callable[..., Any]], object], aloud: Aloud) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        register(_taking_verbose(function, aloud))
        return function

    return decorate


def _taking_verbose(function: Callable[..., Any], aloud: Aloud) -> Callable[..., Any]:
    """Return the function with one more option, `-v`, which is seen to here."""

    @functools.wraps(function)
    def taking(*words: Any, verbose: bool = False, **options: Any) -> Any:
        with aloud() if verbose else nullcontext():
            return function(*words, **options)

    signature = inspect.signature(function)
    option = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    taking.__signature__ = signature.replace(  # type: ignore[attr-defined] # what typer makes the options of
        parameters=[*signature.parameters.values(), option]
    )
    taking.__annotations__ = function.__annotations__ | {"verbose": Verbose}
    return taking


def verbose() -> bool:
    """Say whether this command was given `-v`."""
    return _verbose.get()


def load_settings(
    data_dir: Path | None,
    state_dir: Path | None,
    settings_file: Path | None,
    *,
    quiet: bool = False,
    stays: bool = False,
    to_file: bool = False,
) -> Loaded:
    """Read the settings and say what the user should hear of them; what is wrong ends the command with 2.

    `quiet`: this command logs nothing without `-v`. `stays`: from warnings on, where no setting says
    otherwise. `to_file`: it logs to the file that the settings name, and there whatever they say.
    """
    try:
        loaded = read_settings(
            data_dir, state_dir, settings_file, cwd=Path.cwd(), quiet=quiet, stays=stays, to_file=to_file
        )
    except SettingsError as error:
        die(error)
    for warning in loaded.warnings:
        if quiet:
            typer.echo(f"warning: {logs.redacted(warning)}", err=True)
        else:
            structlog.get_logger().warning("settings", warning=warning)
    return loaded


def read_settings(
    data_dir: Path | None,
    state_dir: Path | None,
    settings_file: Path | None,
    *,
    cwd: Path,
    quiet: bool = False,
    stays: bool = False,
    to_file: bool = False,
) -> Loaded:
    """Read the settings, and let the logs follow them; none of their secrets is shown from now on.

    `quiet`, `stays` and `to_file` are as for `load_settings`. Raises SettingsError; then the logs go on as they were.
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
    level: str = loaded.settings.agent_log_level
    place = logs.LogLocation.of(loaded.settings) if to_file else None
    if not verbose():
        if quiet and place is None:
            level = logs.NOTHING
        elif stays and loaded.origins.get("agent_log_level", "default") == "default":
            level = "WARNING"
    logs.configure(level, loaded.settings.agent_log_format, place)
    return loaded


def finish(work: Coroutine[None, None, int], *, stopped: int | None = None) -> NoReturn:
    """Do the work and exit with its code; told to stop, with `stopped`, or 128 + the signal's number."""
    try:
        code = run_to_end(work, stopped=stopped)
    except AkoshaError as error:
        die(error)
    raise typer.Exit(code)


def die(error: AkoshaError) -> NoReturn:
    """Say what is wrong, on stderr and where the log is, and exit with 1, or 2 where it is the settings.

    An OutputError goes on to the process's end, which knows what to do about it.
    """
    if isinstance(error, OutputError):
        raise error
    if logs.goes_to_file():
        structlog.get_logger().critical("ended_by_error", error=error.message, hint=error.hint)
    typer.echo(f"akosha-agent: {logs.redacted(str(error))}", err=True)
    raise typer.Exit(USAGE if isinstance(error, SettingsError) else FAILED) from error
