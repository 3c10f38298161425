"""The token that changes over the loopback port need, where the settings have none: made once, for this user alone."""

import errno
import os
import re
import secrets
import stat
from pathlib import Path

import structlog

from agent.durability import sync_to_disk

NAME = "http-token"

_DRAFT = "http-token.new"
_OTHERS = 0o077
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,512}")
_MOST_BYTES = 1024

_log = structlog.get_logger()


def kept_token(directory: Path) -> str:
    """Return the token in the directory; where there is none that is one, and that nobody else can read, make it.

    The caller holds the directory's lock. Raises OSError.
    """
    path = directory / NAME
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except ValueError as error:
        _log.warning("http_token_made_anew", path=str(path), why=str(error))
    token = secrets.token_urlsafe(32)
    draft = directory / _DRAFT
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
        file.write(f"{token}\n")
        file.flush()
        sync_to_disk(descriptor)
    draft.replace(path)
    return token


def _read(path: Path) -> str:
    """Return the token. Raises ValueError where it is none or not only ours, FileNotFoundError and other OSErrors."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it was a link") from error
        raise
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            raise ValueError("it was no regular file")
        if seen.st_uid != os.geteuid():
            raise ValueError(f"it was of user {seen.st_uid}")
        if seen.st_mode & _OTHERS:
            raise ValueError(f"others could open it (mode {stat.S_IMODE(seen.st_mode):04o})")
        text = os.read(descriptor, _MOST_BYTES).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    if not _TOKEN.fullmatch(text):
        raise ValueError("it held no token")
    return text
