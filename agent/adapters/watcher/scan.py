"""What a stat of a directory's wanted files shows. Blocks: a local disk for microseconds."""

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

Root = tuple[int, int]
"""A directory's device and inode."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a stat of everything shows: (inode, size, mtime_ns) by name. No `root`: no directory, and `why`."""

    root: Root | None
    files: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    why: str = ""

    def differing(self, earlier: "Look") -> frozenset[str]:
        """Names that appeared, disappeared or changed since."""
        names = self.files.keys() | earlier.files.keys()
        return frozenset(name for name in names if self.files.get(name) != earlier.files.get(name))


def look(directory: Path, wanted: Callable[[str], bool]) -> Look:
    """Look at the files whose names are wanted. Never raises: what cannot be looked into is no directory."""
    try:
        root = root_of(directory)
        names = [name for name in os.listdir(directory) if wanted(name)]  # noqa: PTH208 - names alone
    except FileNotFoundError:
        return Look(None)
    except OSError as error:
        return Look(None, why=error.strerror or str(error))
    files = {}
    for name in names:
        with suppress(OSError):  # gone again
            seen = _stat(directory / name)
            files[name] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return Look(root, files)


def root_of(directory: Path) -> Root:
    """Return what directory is at that path now. Raises OSError."""
    seen = directory.stat()
    if not stat.S_ISDIR(seen.st_mode):
        raise NotADirectoryError("Not a directory")
    return seen.st_dev, seen.st_ino


def _stat(file: Path) -> os.stat_result:
    """Of what a link leads to, for that is what changes; of the link where it leads nowhere."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()
