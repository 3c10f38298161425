"""Lines of text for a terminal or a pipe: wrapped below a label, and coloured on a terminal."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TextIO

NARROWEST = 16
"""Columns of text that are left beside a label; on a narrower terminal, lines are longer than it."""

RESET = "\x1b[0m"


class Style(StrEnum):
    """What a line means; the value is its escape sequence."""

    PLAIN = ""
    GOOD = "\x1b[32m"
    WARNING = "\x1b[33m"
    BAD = "\x1b[31m"
    BOLD = "\x1b[1m"
    DIM = "\x1b[2m"


@dataclass(frozen=True, slots=True)
class Line:
    """A line. If it is wrapped, further lines are indented by `indent`.

    The first `bold` characters are bold; the first `plain` characters do not have the style.
    """

    text: str
    style: Style = Style.PLAIN
    indent: int = 0
    bold: int = 0
    plain: int = 0

    def map(self, change: Callable[[str], str]) -> "Line":
        """Return the line with its text changed."""
        return replace(self, text=change(self.text))


def labelled(label: str, text: str, width: int, style: Style = Style.PLAIN) -> Line:
    """Return a label, padded to `width`, and a text."""
    return Line(f"{label:<{width}}{text}", style, indent=width)


def rendered(lines: Iterable[Line], *, width: int | None, colours: bool) -> list[str]:
    """Return the lines as they are printed: wrapped at `width` (None: not wrapped). Words are not broken."""
    return [_coloured(line, piece, colours=colours) for line in lines for piece in _wrapped(line, width)]


def screen_width(stream: TextIO) -> int | None:
    """Return the terminal's width in columns, None if the stream is no terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def has_colours(stream: TextIO) -> bool:
    """Return whether the stream is a terminal with colours. NO_COLOR (https://no-color.org) disables them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_lines(lines: Iterable[Line]) -> None:
    """Print to standard output, wrapped and coloured if it is a terminal."""
    for text in rendered(lines, width=screen_width(sys.stdout), colours=has_colours(sys.stdout)):
        sys.stdout.write(f"{text}\n")


def _wrapped(line: Line, width: int | None) -> list[str]:
    if width is None or len(line.text) <= width:
        return [line.text.rstrip()]
    head, text = line.text[: line.indent], line.text[line.indent :]
    indent = " " * line.indent
    if width - line.indent < NARROWEST:
        width = line.indent + NARROWEST
    pieces = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [head + pieces[0][line.indent :], *pieces[1:]] if pieces else [head.rstrip()]


def _coloured(line: Line, piece: str, *, colours: bool) -> str:
    if not colours:
        return piece
    if line.bold:
        return f"{Style.BOLD}{piece[: line.bold]}{RESET}{piece[line.bold :]}"
    if not line.style:
        return piece
    return f"{piece[: line.plain]}{line.style}{piece[line.plain :]}{RESET}"
