"""A look at a directory: the status of its wanted files, and whether its file system reports changes.

It blocks: for microseconds on a local disk.
"""

import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_SILENT = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "prl_fs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
})  # fmt: skip
"""Others write to these unseen by this kernel. So it may be with every `fuse.*`."""


def silent(kind: str) -> bool:
    """Say whether files on such a file system may change without a word."""
    return kind in _SILENT or kind.startswith("fuse.")


def file_system(directory: Path) -> str:
    """Return the type of file system that a directory lies on, "" where it is unknown (elsewhere than on Linux)."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real, best, kind = Path(os.path.realpath(directory)), -1, ""
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), mount.split(" ")[4]))
        if real.is_relative_to(point) and len(point.parts) >= best:  # of two on one place, the later covers the earlier
            best, kind = len(point.parts), rest.split(" ")[0]
    return kind


Root = tuple[int, int]
"""A directory's device and inode."""


@dataclass(frozen=True, slots=True)
class DirectoryState:
    """What a stat of everything shows: (inode, size, mtime_ns) by name. No `root`: no directory, and `why`."""

    root: Root | None
    files: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    reason: str = ""

    def differing(self, earlier: "DirectoryState") -> frozenset[str]:
        """Names that appeared, disappeared or changed since."""
        names = self.files.keys() | earlier.files.keys()
        return frozenset(name for name in names if self.files.get(name) != earlier.files.get(name))


def read_directory(directory: Path, wanted: Callable[[str], bool]) -> DirectoryState:
    """Look at the files whose names are wanted. Never raises: what cannot be looked into is no directory."""
    try:
        root = root_of(directory)
        names = [name for name in os.listdir(directory) if wanted(name)]  # noqa: PTH208 - names alone
    except FileNotFoundError:
        return DirectoryState(None)
    except OSError as error:
        return DirectoryState(None, reason=error.strerror or str(error))
    files = {}
    for name in names:
        with suppress(OSError):  # gone again
            seen = _stat(directory / name)
            files[name] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return DirectoryState(root, files)


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
