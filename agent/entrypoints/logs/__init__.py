"""Logging: readable on a terminal, JSON elsewhere; to standard error or to a rotated file.

docs/log_events.toml lists events and keys. Log records of libraries have the same format. Secrets that the process
knows (`hide`) are masked in every line.
"""

import sys

from agent.domain.plain_text import hide, redacted
from agent.entrypoints.logs.location import LogLocation
from agent.entrypoints.logs.pipeline import Renderer, StderrHandler, goes_to_file, is_rendered_by, log_to
from agent.entrypoints.logs.secrets import known_secrets

__all__ = [
    "NOTHING",
    "LogLocation",
    "Renderer",
    "configure",
    "goes_to_file",
    "hide",
    "is_rendered_by",
    "known_secrets",
    "redacted",
]

CONSOLE, JSON, AUTO = "console", "json", "auto"

NOTHING = "CRITICAL"
"""The level at which only crashes are logged."""


def configure(
    level: str, form: str, location: LogLocation | None = None, *, on_terminal: Renderer | None = None
) -> None:
    """Set the level (`DEBUG` ... `ERROR`), the format (`console`, `json`, `auto`) and the location.

    Without a location, lines go to standard error. `auto` means console on a terminal, or as `on_terminal` renders an
    entry ("": not shown); else JSON. A later call closes the previous file. If the file cannot be written, the error
    and the lines go to standard error. Raises SettingsError if the location is not allowed.
    """
    if location is None:
        terminal = sys.stderr.isatty()
        log_to(
            StderrHandler(),
            level,
            console=form == CONSOLE or (form == AUTO and terminal),
            colours=terminal,
            render=on_terminal if form == AUTO and terminal else None,
        )
    else:
        from agent.entrypoints.logs.file import LogFile  # noqa: PLC0415 - takes 15 ms, and most commands need no file

        log_to(LogFile(location.prepare(), location.max_bytes), level, console=form == CONSOLE, colours=False)
