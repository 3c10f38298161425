"""Translates errors of the file system into StoreErrors."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.adapters import fs
from agent.domain.errors import AkoshaError, NoSuchObject, NotPermitted, StoreError, UnreadableObject
from agent.ports import UnexpectedErrors

_TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.EMFILE,
        errno.ENFILE,
    }
)
_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_OBJECT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


@contextmanager
def translated(
    unexpected: UnexpectedErrors[StoreError], action: str, root: Path, key: str = "", *, reading: bool = False
) -> Iterator[None]:
    """Translate exceptions raised within the block into StoreErrors. `reading`: a missing file is NoSuchObject."""
    try:
        yield
    except AkoshaError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise translate(error, action, root, key, reading=reading) from error
        what = f"cannot {action} {key!r} in {root}" if key else f"cannot {action} {root}"
        raise unexpected.translate(error, action, what) from error


@contextmanager
def reading_object(root: Path, key: str) -> Iterator[None]:
    """Raise UnreadableObject if the disk cannot read the object within the block, but still stores other bytes.

    Other errors are raised as they are. Blocks.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNREADABLE or not _stores_bytes(root):
            raise
        found = translate(error, "read", root, key)
        raise UnreadableObject(found.message, hint=found.hint, transient=True) from error


def _stores_bytes(root: Path) -> bool:
    """Return whether a file can be written to the disk. A listing proves nothing: it may come from memory."""
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"\0")
            file.flush()
            fs.sync(file.fileno())
    except OSError:
        return False
    return True


def translate(error: OSError, action: str, root: Path, key: str, *, reading: bool = False) -> StoreError:
    """Return the StoreError for an OSError: what failed, where, and the hint that fixes it."""
    what = f"cannot {action} {key!r} in {root}" if key else f"cannot {action} {root}"
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    text = f"{what}: {reason}"
    number = error.errno
    if reading and number in _NO_OBJECT:
        return NoSuchObject(f"there is no {key!r} in {root}")
    if number in _FULL:
        return StoreError(text, hint=f"make room on the disk of {root}, or remove old uploads from it")
    if number == errno.EROFS:
        return NotPermitted(text, hint=f"remount the file system of {root} for writing")
    if number in _REFUSED:
        return NotPermitted(text, hint=f"make {root} and its contents writable for this user (chmod or chown)")
    if number == errno.ENOENT:
        return StoreError(
            text,
            hint=f"is the disk or share of {root} mounted? If it never had uploads: mkdir -p {root}",
            transient=root.is_dir(),
        )
    if number == errno.ENOLCK:
        return StoreError(
            f"{root} is on a file system without locks: {what}: {reason}",
            hint="mount it with locks (NFS: run its lock service, or use the option nolock), or use another directory",
            transient=True,
        )
    if number == errno.EEXIST:
        return StoreError(text, hint=f"{error.filename or root} is not a directory: move it away")
    if number == errno.EFBIG:
        return StoreError(text, hint="the file system does not support files this large (FAT: 4 GiB): use another one")
    if number == errno.ENAMETOOLONG:
        return StoreError(
            text,
            hint="the file system does not support names this long: set akosha_cloud_endpoint to another directory",
        )
    if number in _NO_OBJECT:
        return StoreError(
            text, hint="there is a file in place of a directory, or a directory in place of a file: move it away"
        )
    return StoreError(text, hint=f"check the disk or share of {root}", transient=number in _TRANSIENT)
