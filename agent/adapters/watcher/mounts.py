"""Which file systems tell of changes, and which do not."""

import os
import re
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
    """Return the type of file system that a directory lies on, "" where that is not told (elsewhere than on Linux)."""
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
