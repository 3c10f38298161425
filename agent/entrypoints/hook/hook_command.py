"""The hook's command in Claude Code's settings: build it from the agent's settings, and recognise it."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.domain.naming import sanitise_system_id
from agent.settings import Settings

PROGRAM = "akosha-agent"
WORDS = ("hook", "session-end")
_OPTIONS = frozenset({"--state-dir", "--system-id"})
_AS_MODULE = ["-m", "agent"]
_ISOLATED = "-EP"
"""Interpreter options: ignore PYTHON* variables, and keep the working directory out of the module path."""
_MODULE = b"agent.__main__"
_SCRIPT_BYTES = 4096
_LONGEST_COMMAND = 64 * 1024
"""More than a program and two options can have; shlex takes minutes for a million characters."""


@dataclass(frozen=True, slots=True)
class HookCommand:
    """A command of the agent's hook: the words that start the program, and its options by name.

    `with_args`: Claude Code's settings contain it as `command` and `args`, started without a shell.
    """

    program: tuple[str, ...]
    options: Mapping[str, str]
    with_args: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def words(self) -> list[str]:
        """The program and all its arguments."""
        return [*self.program, *WORDS, *(word for option in self.options.items() for word in option)]

    @property
    def fields(self) -> dict[str, object]:
        """The fields of a hook in Claude Code's settings that contain the command."""
        if not self.with_args:
            return {"command": str(self)}
        program, *arguments = self.words
        return {"command": program, "args": arguments}

    @property
    def state_dir(self) -> Path | None:
        given = self.options.get("--state-dir")
        return Path(given) if given else None

    @property
    def missing(self) -> str:
        """The first file of the program that does not exist or cannot be executed; "" if there is none."""
        first, *others = self.program
        paths = [word for word in others if word.startswith("/")]
        missing = [path for path in paths if not Path(path).exists()]
        return "" if shutil.which(first) and not missing else (missing or [first])[0]


def hook_command(settings: Settings, *, with_args: bool = False) -> HookCommand:
    """Return the command for these settings. Their options save the hook from reading settings files."""
    return HookCommand(_program(), hook_options(settings), with_args)


def hook_options(settings: Settings) -> dict[str, str]:
    """Return the hook's options for these settings."""
    options = {"--state-dir": os.path.abspath(settings.agent_state_dir)}  # noqa: PTH100 - symlinks are not resolved
    if settings.system_id:
        options["--system-id"] = sanitise_system_id(settings.system_id)
    return options


def parsed(command: object, arguments: object = None) -> HookCommand | None:
    """Parse a hook's command. None if `hook_command` cannot have built it.

    `arguments`: the hook's `args`; None if it has none, and `command` is a shell command line.
    """
    if not isinstance(command, str) or len(command) > _LONGEST_COMMAND:
        return None
    if isinstance(arguments, list):
        words = [command, *(word for word in arguments if isinstance(word, str))]
        if len(words) <= len(arguments):
            return None
    elif arguments is not None:
        return None
    else:
        try:
            words = shlex.split(command)
        except ValueError:
            return None
    at = next((n for n in range(1, len(words)) if tuple(words[n : n + 2]) == WORDS), 0)
    program, given = words[:at], words[at + 2 :]
    if not at or not _is_ours(program) or len(given) % 2:
        return None
    options = dict(zip(given[::2], given[1::2], strict=True))
    if not options.keys() <= _OPTIONS:
        return None
    return HookCommand(tuple(program), options, arguments is not None)


def _is_ours(program: list[str]) -> bool:
    """Return whether these words start the agent: directly, or with an interpreter and its options."""
    tail = 2 if program[-2:] == _AS_MODULE else 1
    options = program[1:-tail]
    named = tail > 1 or Path(program[-1]).name == PROGRAM
    return named and all(word.startswith("-") for word in options)


def _program() -> tuple[str, ...]:
    """Return the words that start the agent without PATH. An upgrade must not change them.

    They name the interpreter if the program is a console script: Claude Code runs hooks in any project's directory and
    environment, and neither `PYTHONPATH` nor a package `agent` there may shadow this one.
    """
    sibling = Path(sys.executable).with_name(PROGRAM)
    found = sibling if os.access(sibling, os.X_OK) else None
    if found and _is_console_script(found):
        return (sys.executable, _ISOLATED, str(found))
    if found:  # a wrapper: it sets up what the agent needs
        return (str(found),)
    if on_path := shutil.which(PROGRAM):
        return (os.path.abspath(on_path),)  # noqa: PTH100 - symlinks are not resolved
    return (sys.executable, _ISOLATED, *_AS_MODULE)


def _is_console_script(script: Path) -> bool:
    """Return whether a program is the console script that installers create for the agent's entry point."""
    try:
        with script.open("rb") as file:
            return _MODULE in file.read(_SCRIPT_BYTES)
    except OSError:
        return False
