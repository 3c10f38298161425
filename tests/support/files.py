"""Files of a directory that other processes change meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path


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
