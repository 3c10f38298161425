"""What a file system says, in the project's words: the only place where its errors become StoreErrors."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.domain.errors import AkoshaError, NoSuchObject, NotPermitted, StoreError
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
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_OBJECT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


@contextmanager
def translated(
    unexpected: UnexpectedErrors[StoreError], action: str, root: Path, key: str = "", *, reading: bool = False
) -> Iterator[None]:
    """Raise the StoreError for whatever is raised in here. `reading`: what is not there is NoSuchObject."""
    try:
        yield
    except AkoshaError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise translate(error, action, root, key, reading=reading) from error
        what = f"cannot {action} {key!r} in {root}" if key else f"cannot {action} {root}"
        raise unexpected.translate(error, action, what) from error


def translate(error: OSError, action: str, root: Path, key: str, *, reading: bool = False) -> StoreError:
    """Return the StoreError that says what failed, where, and how to mend it."""
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
        return NotPermitted(text, hint=f"let this user write there: chmod or chown {root} and what is in it")
    if number == errno.ENOENT:
        return StoreError(
            text,
            hint=f"is the disk or share of {root} mounted? To make the directory: mkdir -p {root}",
            transient=root.is_dir(),
        )
    if number == errno.ENOLCK:
        return StoreError(
            f"{root} is on a file system without locks: {what}: {reason}",
            hint="mount it with locks (NFS: its lock service must run, or the option nolock), or use another directory",
            transient=True,
        )
    if number == errno.EEXIST:
        return StoreError(text, hint=f"{error.filename or root} is no directory: move it away")
    if number == errno.EFBIG:
        return StoreError(text, hint="that file system takes no files this large (FAT: 4 GiB): use another")
    if number == errno.ENAMETOOLONG:
        return StoreError(text, hint="the file system takes no names this long: choose another akosha_cloud_endpoint")
    if number in _NO_OBJECT:
        return StoreError(
            text, hint="there is a file in place of a directory, or a directory in place of a file: move it away"
        )
    return StoreError(text, hint=f"look at the disk or share of {root}", transient=number in _TRANSIENT)
