"""Facts about this machine: directories, inotify limits, processes that have a file open. Read only; blocks.

Facts that the system does not report (not Linux, processes of other users) are omitted.
"""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A directory, or another file at its path. `closed`: why it cannot be read, "" if it can. `free` in bytes."""

    path: Path
    exists: bool
    is_directory: bool = False
    closed: str = ""
    writable: bool = False
    owner: int = 0
    mode: int = 0
    free: int = 0

    @property
    def is_ours(self) -> bool:
        return self.owner == os.geteuid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inotify:
    """The kernel's limits per user, and how much of them the visible processes of this user have used."""

    max_watches: int
    max_instances: int
    watches: int
    instances: int


def folder(path: Path) -> Folder:
    """Examine a directory. If it does not exist, `free` and `writable` are its nearest parent's. Raises OSError."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        parent = next((parent for parent in path.parents if parent.is_dir()), Path("/"))
        return Folder(path=path, exists=False, free=_free(parent), writable=os.access(parent, os.W_OK | os.X_OK))
    except PermissionError as error:
        return Folder(path=path, exists=True, closed=error.strerror or "permission denied")
    closed = ""
    if stat.S_ISDIR(status.st_mode):
        try:
            with os.scandir(path) as entries:
                next(entries, None)
        except OSError as error:
            closed = error.strerror or type(error).__name__
    return Folder(
        path=path,
        exists=True,
        is_directory=stat.S_ISDIR(status.st_mode),
        closed=closed,
        writable=os.access(path, os.W_OK | os.X_OK),
        owner=status.st_uid,
        mode=stat.S_IMODE(status.st_mode),
        free=_free(path),
    )


def inotify(proc: Path = PROC) -> Inotify | None:
    """Return the limits and their use; None if the system has no inotify."""
    limits = proc / "sys/fs/inotify"
    try:
        watches, instances = (int((limits / f"max_user_{name}").read_text()) for name in ("watches", "instances"))
    except (OSError, ValueError):
        return None
    used_watches = used_instances = 0
    for process, number, target in _descriptors(proc):
        if target == "anon_inode:inotify":
            used_instances += 1
            with suppress(OSError):
                lines = (process / "fdinfo" / number).read_text().splitlines()
                used_watches += sum(line.startswith("inotify ") for line in lines)
    return Inotify(max_watches=watches, max_instances=instances, watches=used_watches, instances=used_instances)


def holders(paths: Collection[str], proc: Path = PROC) -> dict[str, tuple[str, ...]]:
    """Return the processes of this user that have one of these files (real paths) open: path -> `name (pid)`s."""
    found: dict[str, set[str]] = {}
    for process, _, target in _descriptors(proc):
        if target in paths:
            with suppress(OSError):
                name = (process / "comm").read_text(errors="replace").strip()
                found.setdefault(target, set()).add(f"{name} ({process.name})")
    return {path: tuple(sorted(names)) for path, names in found.items()}


def _descriptors(proc: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (process, descriptor, its target) for all processes of this user."""
    with suppress(OSError):
        for process in proc.iterdir():
            if not process.name.isdecimal():
                continue
            with suppress(OSError):  # not readable, or the process has ended
                if process.stat().st_uid != os.geteuid():
                    continue
                for descriptor in (process / "fd").iterdir():
                    with suppress(OSError):
                        yield process, descriptor.name, str(descriptor.readlink())


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
