"""A place for files that a command needs for a while, beside others that do the same, and beside the agent.

The staging directory is the agent's: it is emptied when the agent likes. What a command that was killed left here, the
next one removes that finds itself alone.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters import fs
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
        descriptor = fs.open_lock_file(place / _LOCK)
    except OSError as error:
        raise _unusable(place, error) from error
    try:
        if fs.try_lock(descriptor):  # nobody else works there: what lies there was left by a killed command
            _empty(place)
        fs.lock(descriptor, shared=True)
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
