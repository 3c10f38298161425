"""Copies that share the blocks of their source: as a reflink, else as a hard link.

Damage to a shared block reaches every object that has it. Two rules limit that:

- Blocks are shared only if their bytes have been read within `CHECK_SECONDS` and had the expected digest.
- Two uploads may share one physical copy of an object, the third gets its own. From then on, a copy shares the physical
  copy that its source does not have. So the two newest uploads with an object never share all its blocks, and neither
  do those that a prune keeps, if it keeps these two. If a prune leaves three uploads or more with one physical copy,
  the newest of them gets its own at the end of the prune (`only_copies`). It has the bytes that are there: damage that
  happened before is found by a verification, not by this copy.

Objects are never changed in place: the store replaces files by rename.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.adapters.directory_store.layout import (
    HIDDEN,
    inside,
    open_file,
    physical_copy,
    read_record,
    record_bytes,
    record_path,
    walk,
)
from agent.domain.errors import NamingError, StoreError
from agent.domain.parsing import is_unicode, parse_json
from agent.ports import Progress, StoredObject
from agent.ports.objects import FILE_TAG

CHECK_SECONDS = 7 * 86_400
"""A check of the bytes of a file counts this long, if the file does not change."""

MOST_SHARING = 2
"""The number of uploads that may share the only physical copy of an object."""

READ_BYTES = 2**20
COPY_BYTES = 2**23

_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Check:
    """The tag of the bytes that were read from a file, as `StoredObject.etag`, and when (seconds since the epoch)."""

    tag: str
    at: float


class Checks:
    """Records of checks below `.akosha/checked`, one for each inode, valid for one size, mtime and ctime.

    Adding or removing a hard link changes ctime: the code that does it records the check again. A record that is
    missing, damaged, or that another process has overwritten counts as none: the file is read again. All methods block.
    """

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self._root, self._now = root, now
        self._folder = root / HIDDEN / "checked"

    def find(self, status: os.stat_result) -> Check | None:
        """Return the check of a file with this status, None if it was not checked, has changed since, or long ago."""
        try:
            record = parse_json(record_bytes(self._path(status)))
            check = Check(str(record["tag"]), float(record["checked_at"]))
            known = record["size"], record["mtime_ns"], record["ctime_ns"]
        except (OSError, StoreError, ValueError, KeyError, TypeError):
            return None
        unchanged = known == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return check if unchanged and 0 <= self._now() - check.at < CHECK_SECONDS else None

    def read(self, file: BinaryIO, progress: Progress) -> Check:
        """Read a file for its digest. `progress` is called from this thread. Raises OSError."""
        at, digest = self._now(), hashlib.sha256()
        file.seek(0)
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            progress(0)
        return Check(FILE_TAG + digest.hexdigest(), at)

    def keep(self, status: os.stat_result, check: Check) -> None:
        """Record a check of the file with this status. A failure is ignored."""
        record = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "ctime_ns": status.st_ctime_ns,
            "tag": check.tag,
            "checked_at": check.at,
        }
        with contextlib.suppress(OSError, StoreError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fs.write_atomically(self._path(status), json.dumps(record).encode())

    def unlink(self, path: Path) -> None:
        """Remove one name of a file. A check stays valid for the other names. Raises OSError."""
        before = path.stat()
        check = self.find(before)
        if check is None:
            path.unlink(missing_ok=True)
            return
        with open_file(path) as file:
            path.unlink(missing_ok=True)
            after = os.fstat(file.fileno())
        if after.st_nlink and os.path.samestat(before, after) and has_same_bytes(before, after):
            self.keep(after, check)

    def sweep(self) -> None:
        """Remove records that are too old to count, and what a killed process left."""
        with contextlib.suppress(OSError):
            for path in [*self._folder.iterdir()]:
                if not self._counts(path):
                    path.unlink(missing_ok=True)

    def _counts(self, path: Path) -> bool:
        try:
            return 0 <= self._now() - float(parse_json(record_bytes(path))["checked_at"]) < CHECK_SECONDS
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _path(self, status: os.stat_result) -> Path:
        return inside(self._root, self._folder / f"{status.st_ino}.json")


def has_same_bytes(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether only links of an open file changed between two calls of fstat."""
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def reflink(origin: BinaryIO, target: BinaryIO) -> bool:
    """Give an empty file the blocks of `origin`, copy on write. Return False if the file system cannot."""
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, origin.fileno())
    except OSError:
        return False
    return True


def hard_link(origin: BinaryIO, source: Path, target: Path) -> bool:
    """Make `target` another name of `origin`, open from `source`. Return False if the file system cannot.

    A file system may refuse: FAT, a share, another device, too many links, a file of another user.
    """
    try:
        os.link(source, target)
    except OSError:
        return False
    if os.path.samestat(target.lstat(), os.fstat(origin.fileno())):
        return True
    target.unlink()  # the source was replaced meanwhile
    return False


def copy_range(origin: BinaryIO, target: BinaryIO, progress: Progress) -> int:
    """Copy the bytes of an open file to an empty one, into blocks of its own; return their number. Raises OSError.

    `copy_file_range` spares the network of a share. Where the file system has reflinks it would make one, so it is not
    used there.
    """
    copied = 0
    if reflink(origin, target):
        target.truncate(0)
    elif hasattr(os, "copy_file_range"):
        try:
            while count := os.copy_file_range(origin.fileno(), target.fileno(), COPY_BYTES):
                copied += count
                progress(count)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
                raise
    origin.seek(copied)
    target.seek(copied)
    while piece := origin.read(READ_BYTES):
        target.write(piece)
        copied += len(piece)
        progress(len(piece))
    return copied


def to_share(root: Path, source: str, key: str, expected: StoredObject) -> str | None:
    """Return the key of the object whose blocks the copy of `source` to `key` shares; None: it needs its own.

    `expected` describes the source. Looks at the same objects in the uploads of its system, newest first. Raises
    OSError.
    """
    if not expected.etag.startswith(FILE_TAG):  # other objects cannot be compared with it
        return source
    own = physical_copy(root, source)
    sharing = 0
    for other, physical in _same_objects(root, source, key, expected):
        if physical != own:
            return other
        sharing += 1
    return source if sharing < MOST_SHARING else None


def only_copies(root: Path, prefix: str, progress: Progress) -> list[str]:
    """Return the newest of each group of three or more objects under `prefix` that share their only physical copy.

    The objects of a group have the same size and metadata, as in `to_share`. `progress` is called from this thread for
    each object. Raises OSError.
    """
    groups: dict[tuple[int, frozenset[tuple[str, str]]], dict[str, str]] = {}
    for key, size, _ in walk(root, prefix, ""):
        progress(0)
        with contextlib.suppress(NamingError, StoreError, OSError):  # not an object, just deleted, or unreadable
            if metadata := read_record(record_path(root, key), size):
                groups.setdefault((size, frozenset(metadata.items())), {})[key] = physical_copy(root, key)
    return [max(group) for group in groups.values() if len(group) > MOST_SHARING and len({*group.values()}) == 1]


def _same_objects(root: Path, source: str, key: str, expected: StoredObject) -> Iterator[tuple[str, str]]:
    """Yield objects with the expected size and metadata, and their physical copies: `source`, and others beside it."""
    uploads = source.rpartition("/")[0].rpartition("/")[0]
    if not uploads:  # not in an upload
        yield source, physical_copy(root, source)
        return
    for folder in sorted(_names(root / uploads, stat.S_IFDIR), reverse=True):
        if key.startswith(f"{uploads}/{folder}/"):
            continue  # left by an earlier attempt
        for name in _names(root / uploads / folder, stat.S_IFREG, expected.size):
            other = f"{uploads}/{folder}/{name}"
            with contextlib.suppress(NamingError, StoreError, OSError):  # not an object, just deleted, or unreadable
                if read_record(record_path(root, other), expected.size) == expected.metadata:
                    yield other, physical_copy(root, other)


def _names(folder: Path, kind: int, size: int | None = None) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed by a prune
                status = entry.stat(follow_symlinks=False)
                fits = size is None or status.st_size == size
                if fits and stat.S_IFMT(status.st_mode) == kind and is_unicode(entry.name):
                    found.append(entry.name)
    return found
