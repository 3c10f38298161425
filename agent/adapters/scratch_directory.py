"""A directory for the temporary files of commands. Several commands and the agent may run at the same time.

Commands do not use the staging directory, because the agent empties it at any time. Files that a killed command left
are removed by the next command that runs alone.
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
async def scratch(path: Path) -> AsyncIterator[Path]:
    """Yield a private directory at `path`; create it if needed, and empty it first if no other command uses it.

    Raises StateError.
    """
    descriptor = await asyncio.to_thread(_open, path)
    try:
        yield path
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = fs.open_lock_file(path / _LOCK)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        if fs.try_lock(descriptor):  # no other command uses it: its files were left by a killed command
            _empty(path)
        fs.lock(descriptor, shared=True)
    except OSError as error:
        os.close(descriptor)
        raise _unusable(path, error) from error
    return descriptor


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"{path} cannot be used: {error.strerror or error}",
        hint="make it writable for this user, or set akosha_agent_state_dir to a directory on a local disk",
    )
