"""Files and folders for tests, and files of a directory that other processes change meanwhile."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; nothing for a folder that is removed meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def flip_bit(path: Path) -> None:
    """Flip a bit in the middle of a file, in place: hard links of it change, too."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


@contextmanager
def folder_on_another_disk(path: Path) -> Iterator[Path]:
    """Yield a new folder on another device than `path`; skip the test if there is none."""
    for parent in map(Path, ("/dev/shm", "/var/tmp", "/tmp")):
        if parent.is_dir() and parent.stat().st_dev != path.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                yield Path(folder)
            return
    pytest.skip("there is no other disk")
