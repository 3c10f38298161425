"""Compare the hook and the plugin in Claude Code's settings with the command that matches the agent's settings."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.entrypoints.hook.claude_settings import ClaudeSettings
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.hook.plugin import Plugin, enabled_plugin

FIRST_WITH_ARGS = (2, 1, 139)
"""First version of Claude Code that starts a hook with `args` without a shell: `command` is the program, and each of
`args` is one argument (https://code.claude.com/docs/en/hooks). Earlier versions ignore `args`, and would start the
program without arguments."""
TOO_OLD = "this Claude Code is older than 2.1.139 and does not support hooks with args"
INSTALL = "akosha-agent hook install"
UNINSTALL = "akosha-agent hook uninstall"
VERSION_SECONDS = 10.0
"""Limit for `claude --version`, which takes about a second."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def runs_args(environ: Mapping[str, str]) -> bool | None:
    """Return whether the `claude` on PATH supports hooks with `args`; None if its version is unknown."""
    program = shutil.which("claude", path=environ.get("PATH", ""))
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the user's own program, by its path
            [program, "--version"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    if not found or done.returncode:
        return None
    return tuple(int(number) for number in found.groups()) >= FIRST_WITH_ARGS


@dataclass(frozen=True, slots=True)
class InstalledHook:
    """The agent's commands and plugin in a settings file. `error`: why the file cannot be used; "" if it can."""

    path: Path
    commands: Sequence[HookCommand] = ()
    error: str = ""
    hooks_disabled: bool = False
    plugin: Plugin | None = None

    @property
    def twice(self) -> str:
        """A sentence on the command in the file, for a plugin that has the hook; "" if there is none."""
        if not self.commands:
            return ""
        return f"; {self.path} has the hook, too, so each session's end is reported twice, which is harmless"


def installed_hook(path: Path, environ: Mapping[str, str], home: Path) -> InstalledHook:
    """Read the agent's commands and plugin from a settings file. An error is returned in the result, not raised."""
    try:
        settings = ClaudeSettings.read(path)
    except SettingsError as error:
        return InstalledHook(path, error=str(error))
    plugin = enabled_plugin(settings.document, environ, home)
    return InstalledHook(path, settings.commands, hooks_disabled=settings.hooks_disabled, plugin=plugin)


class State(StrEnum):
    """`outdated`: the installed command does not match the agent's settings; `broken`: it cannot run."""

    INSTALLED = "installed"
    ABSENT = "not installed"
    OUTDATED = "outdated"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The state of the hook, the reason, and the command that repairs it."""

    installed: InstalledHook
    state: State
    reason: str = ""
    hint: str = ""

    def document(self) -> dict[str, object]:
        """Return the JSON document of `hook status --json`."""
        return {
            "state": self.state.value,
            "file": str(self.installed.path),
            "plugin": self.installed.plugin.id if self.installed.plugin else None,
            "commands": [
                {
                    "command": str(command),
                    "form": "exec" if command.with_args else "shell",
                    "program_exists": not command.missing,
                }
                for command in self.installed.commands
            ],
            "why": self.reason,
            "hint": self.hint,
        }


def hook_status(installed: InstalledHook, wanted: HookCommand, *, runs_args: bool | None = None) -> HookStatus:
    """Compare the installed commands with the wanted one, which are not needed if the plugin has the hook.

    `runs_args`: whether Claude Code supports hooks with `args`; None if that is unknown.
    """
    if installed.error:
        return HookStatus(installed, State.UNKNOWN, installed.error)
    if not installed.commands and installed.plugin is None:
        return HookStatus(installed, State.ABSENT, "the agent is not notified when a session ends", INSTALL)
    if installed.hooks_disabled:
        return HookStatus(installed, State.BROKEN, "disableAllHooks is true", f'remove it from "{installed.path}"')
    if installed.plugin is not None:
        problem = installed.plugin.problem(wanted.state_dir) if wanted.state_dir else None
        if problem is None:
            reason = f"by the plugin {installed.plugin.id}{installed.twice}"
            return HookStatus(installed, State.INSTALLED, reason, UNINSTALL if installed.commands else "")
        if not installed.commands:
            return HookStatus(installed, State.BROKEN, *problem)
    missing = next((command.missing for command in installed.commands if command.missing), "")
    if missing:
        return HookStatus(installed, State.BROKEN, f"{missing} does not exist or cannot be executed", INSTALL)
    if runs_args is False and any(command.with_args for command in installed.commands):
        return HookStatus(installed, State.BROKEN, TOO_OLD, INSTALL)
    if any(str(command) != str(wanted) for command in installed.commands):
        return HookStatus(installed, State.OUTDATED, f"the current settings need: {wanted}", INSTALL)
    return HookStatus(installed, State.INSTALLED)
