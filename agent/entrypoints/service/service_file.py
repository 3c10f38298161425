"""The service's file, made from a template in `deploy`. It contains a digest of its own text, to detect edits."""

import hashlib
import os
import re
from enum import StrEnum
from pathlib import Path

import agent
from agent.adapters import fs
from agent.domain.errors import AkoshaError
from agent.entrypoints.installation import REINSTALL

_MARK = "Written by `akosha-agent service install`; sha256"
_DIGEST_LINE = re.compile(rf"^.*{re.escape(_MARK)} ([0-9a-f]{{64}}).*\n", re.MULTILINE)


class FileState(StrEnum):
    """Whether the file exists, and whether it is unchanged since `service install` wrote it."""

    ABSENT = "absent"
    UNCHANGED = "unchanged"
    EDITED = "edited"
    """Written or changed by a person or another program, or replaced by a link."""


def template(name: str) -> str:
    """Return the text of `deploy/{name}`. Raises AkoshaError if it is missing."""
    package = Path(agent.__file__).parent
    for folder in (package / "deploy", package.parent / "deploy"):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError:
            continue
    raise AkoshaError(f"the template {name} is missing from {package}", hint=REINSTALL)


def with_digest(text: str, *, before: str, opening: str = "# ", closing: str = "") -> str:
    """Insert a comment line with the text's digest before the first occurrence of `before`."""
    head, mark, tail = text.partition(before)
    line = f"{opening}{_MARK} {_digest(text)}{closing}\n"
    return head + line + mark + tail


def read(path: Path) -> tuple[FileState, str]:
    """Return the state of the file and its text ("" if it is missing). Raises AkoshaError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (FileState.EDITED if path.is_symlink() else FileState.ABSENT), ""
    except UnicodeDecodeError:
        return FileState.EDITED, ""
    except OSError as error:
        raise AkoshaError(f"{path} cannot be read: {error.strerror}") from error
    found = _DIGEST_LINE.search(text)
    if path.is_symlink() or found is None or _digest(_DIGEST_LINE.sub("", text, count=1)) != found[1]:
        return FileState.EDITED, text
    return FileState.UNCHANGED, text


def write(path: Path, text: str, mode: int) -> None:
    """Write the file atomically with this mode, and create its parent directories. Raises AkoshaError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomically(path, text.encode(), mode=mode)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be written: {error.strerror}") from error


def set_aside(path: Path) -> Path:
    """Rename the file to the first free name of `.bak`, `.bak2`, ... and return it. Raises AkoshaError."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.bak{'' if number == 1 else number}")):
        number += 1
    try:
        return path.rename(aside)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be renamed: {error.strerror}") from error


def remove(path: Path, *, up_to: Path) -> None:
    """Remove the file, then its empty parent directories below `up_to`. Raises AkoshaError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise AkoshaError(f"{path} cannot be removed: {error.strerror}") from error
    for folder in path.parents:
        if folder == up_to or not folder.is_relative_to(up_to):
            return
        try:
            folder.rmdir()
        except OSError:  # not empty
            return


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
