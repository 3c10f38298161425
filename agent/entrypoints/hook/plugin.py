"""Claude Code's plugin of the agent (`plugins/akosha-agent`), which has the session-end hook and the MCP server.

Claude Code's settings list the plugins that are enabled for all projects:

    {"enabledPlugins": {"akosha-agent@akosha": true}}
"""

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.entrypoints.hook import note
from agent.entrypoints.hook.hook_command import PROGRAM
from agent.entrypoints.installation import INSTALL

NAME = "akosha-agent"
ENABLED = "enabledPlugins"
BESIDES_PATH = (".local/bin", ".akosha-agent/bin")
"""Directories in the home directory that the plugin searches after PATH: those of the documented installations."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """The enabled plugin, `NAME@MARKETPLACE`.

    `program` is the one that it starts from this environment, None if it finds none; `state_dir` is where its hook
    writes notes then.
    """

    id: str
    program: Path | None
    state_dir: Path

    def problem(self, state_dir: Path) -> tuple[str, str] | None:
        """Return why its hook does not reach the agent of this state directory, and the cure; None if it does."""
        if self.program is None:
            searched = " or ".join(["on PATH", *(f"in ~/{name}" for name in BESIDES_PATH)])
            return f"the plugin {self.id} does not find {PROGRAM} {searched}", INSTALL
        if self.state_dir.resolve() != state_dir.resolve():
            text = f"the hook of the plugin {self.id} writes its notes to {self.state_dir}, but the agent reads"
            return f"{text} {state_dir}", f"akosha-agent config set agent_state_dir {shlex.quote(str(state_dir))}"
        return None


def enabled_plugin(document: Mapping[str, object], environ: Mapping[str, str], home: Path) -> Plugin | None:
    """Return the plugin if Claude Code's settings enable it, else None."""
    enabled = document.get(ENABLED)
    if not isinstance(enabled, dict):
        return None
    found = next((key for key, value in enabled.items() if key.partition("@")[0] == NAME and value), None)
    if found is None:
        return None
    variables, options = {**environ, "HOME": str(home)}, dict[str, str]()
    if note.settings_have_options(variables):
        with suppress(SettingsError):  # reported wherever the settings are needed
            options = note.options_of_settings(variables)
    state = note.state_directory(options.get("--state-dir", ""), variables)
    return Plugin(found, _program(environ, home), Path(state))


def _program(environ: Mapping[str, str], home: Path) -> Path | None:
    """Return the program that `start.sh` of the plugin starts."""
    directories = [Path(name) for name in environ.get("PATH", "").split(":")] + [home / name for name in BESIDES_PATH]
    paths = [directory / PROGRAM for directory in directories if directory.is_absolute()]
    return next((path for path in paths if path.is_file() and os.access(path, os.X_OK)), None)
