"""Tables on a terminal. Control characters in names and server texts are escaped."""

import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.domain.plain_text import printable

WIDE = 240
"""Width in columns of a table in a pipe: wide enough not to wrap lines."""


class PlainConsole(Console):
    """Prints text without interpreting markup, and with control characters escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def print_table(table: Table) -> None:
    """Print a table, without the spaces that pad its last column."""
    console = table_console()
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def table_console() -> PlainConsole:
    """Return the console for tables: as wide as the terminal, or `WIDE` in a pipe."""
    return PlainConsole(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False)
