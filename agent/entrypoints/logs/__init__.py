"""Logging: readable on a terminal, JSON elsewhere; to standard error, or to a file that is rotated.

docs/logs.md lists events, keys and levels. Log records of libraries have the same form, and no line contains a secret
that the process knows (`hide`).
"""

import sys

from agent.domain.plain_text import hide, redacted
from agent.entrypoints.logs.location import LogLocation
from agent.entrypoints.logs.pipeline import StderrHandler, goes_to_file, log_to
from agent.entrypoints.logs.secrets import known_secrets

__all__ = ["NOTHING", "LogLocation", "configure", "goes_to_file", "hide", "known_secrets", "redacted"]

CONSOLE, JSON, AUTO = "console", "json", "auto"

NOTHING = "CRITICAL"
"""The level at which only crashes are logged."""


def configure(level: str, form: str, location: LogLocation | None = None) -> None:
    """Set the level (`DEBUG` ... `ERROR`), the form (`console`, `json`, `auto`) and the location; None: standard error.

    `auto` is console on a terminal. May be called again; the previous file is closed. Raises SettingsError for a
    location that is not allowed. A file that cannot be written is reported on standard error, which gets the lines.
    """
    if location is None:
        terminal = sys.stderr.isatty()
        log_to(StderrHandler(), level, console=form == CONSOLE or (form == AUTO and terminal), colours=terminal)
    else:
        from agent.entrypoints.logs.file import LogFile  # noqa: PLC0415 - takes 15 ms, and most commands need no file

        log_to(LogFile(location.prepare(), location.max_bytes), level, console=form == CONSOLE, colours=False)
