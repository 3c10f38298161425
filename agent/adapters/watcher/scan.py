"""Scans a directory: the status of its wanted files, and whether its file system reports changes.

Blocks, for microseconds on a local disk.
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
"""File systems that other hosts or programs can change without this kernel's notice; so can every `fuse.*`."""

Root = tuple[int, int]
"""A directory's device and inode."""


def silent(kind: str) -> bool:
    """Return whether files on a file system of this type can change without a notification."""
    return kind in _SILENT or kind.startswith("fuse.")


def file_system(directory: Path) -> str:
    """Return the type of a directory's file system, "" if it is unknown (not on Linux)."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real, best, kind = Path(os.path.realpath(directory)), -1, ""
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), mount.split(" ")[4]))
        if real.is_relative_to(point) and len(point.parts) >= best:  # a later mount at the same point hides the earlier
            best, kind = len(point.parts), rest.split(" ")[0]
    return kind


@dataclass(frozen=True, slots=True)
class DirectoryState:
    """The scanned files: name -> (inode, size, mtime_ns).

    `root` is None if the directory cannot be read; `reason` is the error, "" if the directory does not exist.
    """

    root: Root | None
    files: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    reason: str = ""

    def differing(self, earlier: "DirectoryState") -> frozenset[str]:
        """Return the names that appeared, disappeared or changed since the earlier scan."""
        names = self.files.keys() | earlier.files.keys()
        return frozenset(name for name in names if self.files.get(name) != earlier.files.get(name))


def read_directory(directory: Path, wanted: Callable[[str], bool]) -> DirectoryState:
    """Scan the files whose names are wanted. Never raises: an unreadable directory counts as missing."""
    try:
        root = root_of(directory)
        names = [name for name in os.listdir(directory) if wanted(name)]  # noqa: PTH208 - names alone
    except FileNotFoundError:
        return DirectoryState(None)
    except OSError as error:
        return DirectoryState(None, reason=error.strerror or str(error))
    files = {}
    for name in names:
        with suppress(OSError):  # deleted meanwhile
            status = _stat(directory / name)
            files[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return DirectoryState(root, files)


def root_of(directory: Path) -> Root:
    """Return the device and inode of the directory at that path. Raises OSError."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError("Not a directory")
    return status.st_dev, status.st_ino


def _stat(file: Path) -> os.stat_result:
    """Return the status of a link's target, because that is the file that changes; of the link itself if it dangles."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()
