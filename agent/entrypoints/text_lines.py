"""Lines of text for a terminal or a pipe: wrapped below a label, and coloured on a terminal."""

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TextIO

NARROWEST = 16
"""Columns of text that are left beside a label; on a narrower terminal, lines are longer than it."""

_WORD = re.compile(r"\s+|\S+")

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


def print_lines(lines: Iterable[Line], *, err: bool = False) -> None:
    """Print to standard output, or standard error, wrapped and coloured if it is a terminal."""
    stream = sys.stderr if err else sys.stdout
    for text in rendered(lines, width=screen_width(stream), colours=has_colours(stream)):
        stream.write(f"{text}\n")
    stream.flush()


def text_width(text: str) -> int:
    """Return how many columns a terminal needs for a text without control characters.

    >>> text_width("abc"), text_width("記憶")
    (3, 4)
    """
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def cut_to_width(text: str, width: int) -> str:
    """Return the beginning of a text that fits into so many columns.

    >>> cut_to_width("記憶 1", 3)
    '記'
    """
    used = 0
    for at, character in enumerate(text):
        used += _columns_of(character)
        if used > width:
            return text[:at]
    return text


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _wrapped(line: Line, width: int | None) -> list[str]:
    if width is None or text_width(line.text) <= width:
        return [line.text.rstrip()]
    head, text = line.text[: line.indent], line.text[line.indent :]
    room = max(width - line.indent, NARROWEST)
    pieces, spaces = [""], ""
    for word in _words(text):
        if word.isspace():
            spaces = word
            continue
        if pieces[-1] and text_width(pieces[-1] + spaces + word) > room:
            pieces.append(word)
        else:
            pieces[-1] += (spaces if pieces[-1] or len(pieces) == 1 else "") + word
        spaces = ""
    return [(head + pieces[0]).rstrip(), *[" " * line.indent + piece for piece in pieces[1:]]]


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text and the spaces between them. A line may also end after each wide character."""
    for found in _WORD.findall(text):
        word = ""
        for character in found:
            word += character
            if _columns_of(character) > 1:
                yield word
                word = ""
        if word:
            yield word


def _coloured(line: Line, piece: str, *, colours: bool) -> str:
    if not colours:
        return piece
    if line.bold:
        return f"{Style.BOLD}{piece[: line.bold]}{RESET}{piece[line.bold :]}"
    if not line.style:
        return piece
    return f"{piece[: line.plain]}{line.style}{piece[line.plain :]}{RESET}"
