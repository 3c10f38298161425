"""How the agent logs: readable on a terminal, JSON where a program reads; to stderr, or to a file that is rotated.

Event names, keys and levels stand in docs/logs.md. What libraries log comes out in the same form, and no line shows a
secret that the process knows (`hide`).
"""

import sys

from agent.domain.plain_text import hide, redacted
from agent.entrypoints.logs.location import LogLocation
from agent.entrypoints.logs.pipeline import Stderr, goes_to_file, lines_to
from agent.entrypoints.logs.secrets import known_secrets

__all__ = ["NOTHING", "LogLocation", "configure", "goes_to_file", "hide", "known_secrets", "redacted"]

CONSOLE, JSON, AUTO = "console", "json", "auto"

NOTHING = "CRITICAL"
"""The level at which nothing is logged but a crash."""


def configure(level: str, form: str, place: LogLocation | None = None) -> None:
    """Set the log level (`DEBUG` ... `ERROR`), form (`console`, `json`, `auto`) and place; None: stderr.

    `auto` is console on a terminal. May be called again: the file from before is closed. Raises SettingsError where
    the place is no place for a log; one that cannot be written now is told of on stderr, and so is all else until it
    can.
    """
    if place is None:
        terminal = sys.stderr.isatty()
        lines_to(Stderr(), level, console=form == CONSOLE or (form == AUTO and terminal), colours=terminal)
    else:
        from agent.entrypoints.logs.file import LogFile  # noqa: PLC0415 - 15 ms that most commands do without

        lines_to(LogFile(place.prepared(), place.bytes_each), level, console=form == CONSOLE, colours=False)
