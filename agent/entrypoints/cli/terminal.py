"""What people see: tables and lines in which no name, reason or server's word steers the terminal."""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from agent.domain.plain_text import printable

WIDE = 240
"""Columns of a table in a pipe: lines are not folded for a terminal that is not there."""


class PlainConsole(Console):
    """Prints texts as they are: rich reads no markup in them, and what would steer the terminal is an escape."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)


def table_console() -> PlainConsole:
    """Return the console for tables: as wide as the terminal, `WIDE` in a pipe."""
    return PlainConsole(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False)


def line_console() -> PlainConsole:
    """Return the console for lines, which the terminal folds by itself."""
    return PlainConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
