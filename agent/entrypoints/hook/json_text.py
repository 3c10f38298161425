"""JSON as the text that it is: where its pieces stand, so that one can be changed and all others stay as they are.

Positions are indices into the text. All of it is for texts that `checked` has let through.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from agent.domain.errors import SettingsError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Piece:
    """A member of an object, or an item of an array: from `start` (of its key, where it has one) to `end`; its value
    starts at `value`.
    """

    start: int
    value: int
    end: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """An object or an array: what is between its brackets runs from `inside` to `end`."""

    inside: int
    end: int
    pieces: Sequence[Piece]

    def member(self, key: str) -> Piece | None:
        """Return the member of that name; of several, the last: it is the one that counts."""
        return next((piece for piece in reversed(self.pieces) if piece.key == key), None)


def checked(text: str, name: str) -> None:
    """Raise SettingsError, with line and column, for what is not one JSON document. `name` is what people call it."""
    hint = "mend it, or move it away"
    body = text.removeprefix(BOM)
    try:
        json.loads(body, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SettingsError(f"{name} is not JSON: {error.msg} at {where}", hint=hint) from error
    except RecursionError as error:
        raise SettingsError(f"{name} is nested too deeply to be read", hint=hint) from error
    except _ConstantError as error:
        raise SettingsError(f"{name} is not JSON: {error} is no number", hint=hint) from error
    except ValueError as error:  # a number of thousands of digits
        raise SettingsError(f"{name} cannot be read: {error}", hint=hint) from error


def top(text: str) -> int:
    """Return where the document starts."""
    return _after_space(text, len(BOM) if text.startswith(BOM) else 0)


def value_of(text: str, at: int) -> object:
    """Return the value that starts there."""
    value: object = _DECODER.raw_decode(text, at)[0]
    return value


def opened(text: str, at: int) -> Box:
    """Return the pieces of the object or array that starts there."""
    inside, keyed = at + 1, text[at] == "{"
    pieces: list[Piece] = []
    at = _after_space(text, inside)
    while text[at] not in "}]":
        start, key = at, ""
        if keyed:
            key, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        end = _DECODER.raw_decode(text, at)[1]
        pieces.append(Piece(start, at, end, key))
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return Box(inside, at, pieces)


def added(text: str, box: Box, key: str, value: object) -> str:
    """Return the text with one more piece at the end of a box, in the manner of what is there."""
    newline = "\r\n" if "\r\n" in text else "\n"
    first = _lead(text, text.find("{"))
    unit = first.rpartition("\n")[2] if "\n" in first else "  "
    spread = "\n" in text[top(text) :].rstrip() or not text[top(text) :].strip(" \t\r\n{}")
    if box.pieces:
        lead = _lead(text, box.pieces[-1].start - 1)
        indent = lead.rpartition("\n")[2]
        spread = "\n" in lead
    else:
        indent = _indent_of_line(text, box.inside) + unit
    rendered = json.dumps(value, ensure_ascii=False, indent=unit if spread else None)
    if key:
        rendered = f"{json.dumps(key)}: {rendered}"
    rendered = rendered.replace("\n", newline + indent)
    if box.pieces:
        at = box.pieces[-1].end
        return text[:at] + "," + (newline + indent if spread else " ") + rendered + text[at:]
    before, after = newline + indent, newline + indent.removesuffix(unit)
    return text[: box.inside] + (before + rendered + after if spread else rendered) + text[box.end :]


def removed(text: str, box: Box, piece: Piece, gap: str) -> str:
    """Return the text without one piece of a box; `gap` is what stands between its brackets if it was the only one."""
    number = box.pieces.index(piece)
    if len(box.pieces) == 1:
        start, end = box.inside, box.end
        return text[:start] + gap + text[end:]
    if number:
        return text[: box.pieces[number - 1].end] + text[piece.end :]
    return text[: piece.start] + text[box.pieces[1].start :]


def replaced(text: str, at: int, value: object) -> str:
    """Return the text with another value in place of the one that starts there."""
    return text[:at] + json.dumps(value, ensure_ascii=False) + text[_DECODER.raw_decode(text, at)[1] :]


class _ConstantError(Exception):
    pass


def _no_constant(text: str) -> NoReturn:
    raise _ConstantError(text)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _lead(text: str, before: int) -> str:
    """Return the space around a position that lies between two pieces: back to what comes before, and on to what
    follows.
    """
    start = before + 1
    while start and text[start - 1] in " \t\r\n":
        start -= 1
    return text[start : _after_space(text, before + 1)]


def _indent_of_line(text: str, at: int) -> str:
    line = text.rfind("\n", 0, at) + 1
    found = re.compile(r"[ \t]*").match(text, line)
    assert found is not None
    return found[0]
