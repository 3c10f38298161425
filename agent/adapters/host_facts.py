"""What this machine tells about itself: directories, inotify, who has a file open. Reads only; blocks.

What is unknown (elsewhere than on Linux, of other users' processes) is left out, not guessed.
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
    """A directory, or what is in its place. `closed`: why it cannot be read, "" where it can; `free` in bytes."""

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
    """The kernel's limits for each user, and what this user's processes have taken of them, as far as they show."""

    max_watches: int
    max_instances: int
    watches: int
    instances: int


def folder(path: Path) -> Folder:
    """Look at a directory. `free` is that of the nearest one above where there is none yet. Raises OSError."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        above = next((parent for parent in path.parents if parent.is_dir()), Path("/"))
        return Folder(path=path, exists=False, free=_free(above), writable=os.access(above, os.W_OK | os.X_OK))
    except PermissionError as error:
        return Folder(path=path, exists=True, closed=error.strerror or "no answer")
    closed = ""
    if stat.S_ISDIR(found.st_mode):
        try:
            with os.scandir(path) as entries:
                next(entries, None)
        except OSError as error:
            closed = error.strerror or "no answer"
    return Folder(
        path=path,
        exists=True,
        is_directory=stat.S_ISDIR(found.st_mode),
        closed=closed,
        writable=os.access(path, os.W_OK | os.X_OK),
        owner=found.st_uid,
        mode=stat.S_IMODE(found.st_mode),
        free=_free(path),
    )


def inotify(proc: Path = PROC) -> Inotify | None:
    """Return the limits and what is used of them; None where there is no inotify."""
    limits = proc / "sys/fs/inotify"
    try:
        watches, instances = (int((limits / f"max_user_{what}").read_text()) for what in ("watches", "instances"))
    except (OSError, ValueError):
        return None
    used_watches = used_instances = 0
    for process, number, target in _descriptors(proc):
        if target == "anon_inode:inotify":
            used_instances += 1
            with suppress(OSError):
                found = (process / "fdinfo" / number).read_text()
                used_watches += sum(line.startswith("inotify ") for line in found.splitlines())
    return Inotify(max_watches=watches, max_instances=instances, watches=used_watches, instances=used_instances)


def holders(paths: Collection[str], proc: Path = PROC) -> dict[str, tuple[str, ...]]:
    """Return which of these (real paths) a process of this user has open: path -> `name (pid)`s."""
    found: dict[str, set[str]] = {}
    for process, _, target in _descriptors(proc):
        if target in paths:
            with suppress(OSError):
                name = (process / "comm").read_text(errors="replace").strip()
                found.setdefault(target, set()).add(f"{name} ({process.name})")
    return {path: tuple(sorted(names)) for path, names in found.items()}


def _descriptors(proc: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (process, descriptor, what it leads to) of all processes that we may look into."""
    with suppress(OSError):
        for process in proc.iterdir():
            if not process.name.isdecimal():
                continue
            with suppress(OSError):  # somebody else's, or gone
                if process.stat().st_uid != os.geteuid():
                    continue
                for descriptor in (process / "fd").iterdir():
                    with suppress(OSError):
                        yield process, descriptor.name, str(descriptor.readlink())


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
