"""Files of a directory that other processes change meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; nothing for a folder that is removed meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
