"""A file that carries the digest of its own text: whether somebody else has changed it since can be told."""

import hashlib
import os
import re
from enum import StrEnum
from pathlib import Path

from agent.adapters import fs
from agent.domain.errors import AkoshaError

_MARK = "Written by `akosha-agent service install`; sha256"
_SEAL = re.compile(rf"^.*{re.escape(_MARK)} ([0-9a-f]{{64}}).*\n", re.MULTILINE)


class Seal(StrEnum):
    """What a file is."""

    ABSENT = "absent"
    WHOLE = "whole"
    BROKEN = "broken"
    """Somebody else has written or changed it, or has put a link in its place."""


def seal(text: str, *, before: str, opening: str = "# ", closing: str = "") -> str:
    """Return the text with a line of its digest in front of the first `before`. The line is a comment."""
    head, mark, tail = text.partition(before)
    line = f"{opening}{_MARK} {_digest(text)}{closing}\n"
    return head + line + mark + tail


def read(path: Path) -> tuple[Seal, str]:
    """Return what the file is, and its text ("" where there is none). Raises AkoshaError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (Seal.BROKEN if path.is_symlink() else Seal.ABSENT), ""
    except UnicodeDecodeError:
        return Seal.BROKEN, ""
    except OSError as error:
        raise AkoshaError(f"{path} cannot be read: {error.strerror}") from error
    found = _SEAL.search(text)
    if path.is_symlink() or found is None or _digest(_SEAL.sub("", text, count=1)) != found[1]:
        return Seal.BROKEN, text
    return Seal.WHOLE, text


def place(path: Path, text: str, mode: int) -> None:
    """Put the text there, whole or not at all, with this mode; directories that are missing are made.

    Raises AkoshaError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomically(path, text.encode(), mode=mode)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be written: {error.strerror}") from error


def set_aside(path: Path) -> Path:
    """Rename the file to the first free `.bak`, `.bak2`, ... beside it, and return that. Raises AkoshaError."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.bak{'' if number == 1 else number}")):
        number += 1
    try:
        return path.rename(aside)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be renamed: {error.strerror}") from error


def remove(path: Path, *, up_to: Path) -> None:
    """Remove the file, then the directories above it that are empty, below `up_to`. Raises AkoshaError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be removed: {error.strerror}") from error
    for folder in path.parents:
        if folder == up_to or not folder.is_relative_to(up_to):
            return
        try:
            folder.rmdir()
        except OSError:  # not empty: somebody else's, too
            return


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
