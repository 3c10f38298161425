"""The token that changes over the loopback port need, where the settings have none: made once, for this user alone."""

import re
import secrets
from pathlib import Path

import structlog

from agent.adapters import fs

NAME = "http-token"

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
    fs.write_atomically(path, f"{token}\n".encode(), sole_writer=True)
    return token


def _read(path: Path) -> str:
    """Return the token. Raises ValueError where it is none or not only ours, FileNotFoundError and other OSErrors."""
    text = fs.read_own(path, _MOST_BYTES, private=True).decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(text):
        raise ValueError("it holds no token")
    return text
