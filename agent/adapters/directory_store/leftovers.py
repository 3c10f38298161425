"""What killed puts leave in the hidden directory: unfinished files, records without an object, old checks."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from agent.adapters import fs
from agent.adapters.directory_store.incoming import LINK_SUFFIX, prune
from agent.adapters.directory_store.layout import HIDDEN, incoming_folder, object_path
from agent.adapters.directory_store.sharing import Checks

ABANDONED_SECONDS = 900
"""On a file system without locks, an unfinished put counts as abandoned after this time without a write."""


def sweep(root: Path, prefix: str) -> int:
    """Remove what killed puts of keys under `prefix` left; return the number of files removed.

    These are incoming files that no process writes, and records whose object never appeared. A put locks its file, and
    the lock ends with its process, on this machine or on another one over NFS. On a file system without locks, the
    file's age counts. Empty directories are removed, too.
    """
    top = root / HIDDEN / "incoming"
    removed = 0
    for folder, names in _below(top, prefix):
        key = Path(folder).relative_to(top).as_posix()
        if key.startswith(prefix):
            removed += sum(_remove_if_abandoned(Path(folder) / name) for name in names)
            prune(Path(folder), root / HIDDEN)
    for key, record in [*_orphans(root, prefix)]:
        # The order matters: an object appears while its put still holds the lock.
        if not _has_active_put(root, key) and not object_path(root, key).exists():
            record.unlink(missing_ok=True)
            removed += 1
    _prune_empty(root / HIDDEN / "metadata", prefix)
    Checks(root).sweep()
    return removed


def count_unfinished(root: Path, prefix: str) -> int:
    """Return how many files `sweep` would remove. Removes none of them."""
    top = root / HIDDEN / "incoming"
    orphans = sum(not _has_active_put(root, key) for key, _ in _orphans(root, prefix))
    return orphans + sum(
        _is_abandoned(Path(folder) / name)
        for folder, names in _below(top, prefix)
        if Path(folder).relative_to(top).as_posix().startswith(prefix)
        for name in names
    )


def _orphans(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield the key and the record of each record under `prefix` without an object."""
    top = root / HIDDEN / "metadata"
    for folder, names in _below(top, prefix):
        for name in names:
            key = (Path(folder) / name).relative_to(top).as_posix().removesuffix(".json")
            if name.endswith(".json") and key.startswith(prefix) and not (root / key).exists():
                yield key, Path(folder) / name


def _has_active_put(root: Path, key: str) -> bool:
    """Return whether a put of this key may be in progress."""
    try:
        return not all(_is_abandoned(path) for path in incoming_folder(root, key).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _prune_empty(top: Path, prefix: str) -> None:
    for folder, _ in _below(top, prefix, topdown=False):
        if Path(folder).relative_to(top).as_posix().startswith(prefix.rstrip("/")):
            prune(Path(folder), top.parent)


def _below(top: Path, prefix: str, *, topdown: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield directories and their file names, without those that cannot contain keys under `prefix`."""
    for folder, _, names in os.walk(top / prefix.rpartition("/")[0], topdown=topdown):
        yield folder, names


def _remove_if_abandoned(path: Path) -> bool:
    if not _is_abandoned(path):
        return False
    path.unlink(missing_ok=True)
    return True


def _is_abandoned(path: Path) -> bool:
    """Return whether a put's file or link exists, and no process has the put's file locked.

    Without locks, whether nothing was written to it for ABANDONED_SECONDS.
    """
    put = _put_of(path)
    try:
        descriptor = fs.open_regular(put, writable=True)
    except FileNotFoundError:
        return put != path and path.exists()
    except (OSError, ValueError):  # unknown: another user's, unreadable, or not a file of a put
        return False
    try:
        return fs.try_lock(descriptor)
    except OSError:  # the file system has no locks
        return _is_older_than(put, ABANDONED_SECONDS)
    finally:
        os.close(descriptor)


def _put_of(path: Path) -> Path:
    """Return the file that a put locks. Its link has lock and mtime of an object, which may be old."""
    return path.with_suffix("") if path.suffix == LINK_SUFFIX else path


def _is_older_than(path: Path, seconds: float) -> bool:
    """Compare the file's mtime with a new file's: the clock of the file system may be another machine's.

    Where no file can be created (a full disk), with the time of this machine.
    """
    probe = path.with_name(f"{path.name}.now")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        probe.unlink(missing_ok=True)
    try:
        return now - path.stat().st_mtime > seconds
    except FileNotFoundError:  # the put has just ended
        return False
