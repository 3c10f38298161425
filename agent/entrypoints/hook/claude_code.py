"""Claude Code on this machine: where its user's settings are, and which form of hook its version runs.

From 2.1.139 on, a hook with `args` is started without a shell: `command` is the program, and each of `args` is one
argument as it is written (https://code.claude.com/docs/en/hooks). An earlier version ignores `args`, and would start
the program without them.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

CONFIG_DIR = "CLAUDE_CONFIG_DIR"
FIRST_WITH_ARGS = (2, 1, 139)
VERSION_SECONDS = 10.0
"""Claude Code takes about a second to say its version; one that hangs is of an unknown version."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def settings_file(environ: Mapping[str, str], home: Path) -> Path:
    """Return where Claude Code keeps its user's settings."""
    given = environ.get(CONFIG_DIR, "")
    folder = Path(given).expanduser().absolute() if given else home / ".claude"
    return folder / "settings.json"


def version(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the version of the `claude` on PATH; None where there is none, or it does not say."""
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
    return tuple(int(number) for number in found.groups()) if found and not done.returncode else None


def runs_args(environ: Mapping[str, str]) -> bool | None:
    """Say whether the Claude Code of this machine runs hooks with `args`; None where its version is unknown."""
    found = version(environ)
    return None if found is None else found >= FIRST_WITH_ARGS
