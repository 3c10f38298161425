"""A place for files that a command needs for a while, beside others that do the same, and beside the agent.

The staging directory is the agent's: it is emptied when the agent likes. What a command that was killed left here, the
next one removes that finds itself alone.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.domain.errors import StateError

_LOCK = "lock"


@asynccontextmanager
async def scratch(place: Path) -> AsyncIterator[Path]:
    """Yield a directory of ours alone at `place`, made where there is none, emptied first where nobody else is in it.

    Raises StateError.
    """
    descriptor = await asyncio.to_thread(_entered, place)
    try:
        yield place
    finally:
        os.close(descriptor)


def _entered(place: Path) -> int:
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(place, error) from error
    try:
        with suppress(BlockingIOError):  # others are at work: what lies there is theirs
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(place)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        os.close(descriptor)
        raise _unusable(place, error) from error
    return descriptor


def _empty(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _unusable(place: Path, error: OSError) -> StateError:
    return StateError(
        f"{place} cannot be used: {error.strerror or error}",
        hint="make it writable for this user, or set akosha_agent_state_dir to a directory on a local disk",
    )
