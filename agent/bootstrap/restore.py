"""From settings to a restore: an archive, a directory, and what makes files of objects."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb import DuckdbFolder
from agent.adapters.gunzip import Unpacker
from agent.adapters.lock_probe import find_holder
from agent.adapters.restore_directory import RestoreDirectoryFiles
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.restore import Restore
from agent.domain.errors import RestoreError
from agent.domain.restore_plan import Restored
from agent.settings import Settings


@asynccontextmanager
async def open_restore(directory: Path, archive: Catalog) -> AsyncIterator[Restore]:
    """Open the directory, made where there is none, for as long as the block runs. Raises RestoreError."""
    give_back_large_blocks()
    place = await asyncio.to_thread(RestoreDirectoryFiles, directory, find_holder)
    try:
        yield Restore(
            catalog=archive,
            directory=place,
            unpacker=Unpacker(place.directory),
            folder=DuckdbFolder(),
            clock=SystemClock(),
        )
    finally:
        place.close()


def finish_restores(directory: Path) -> tuple[Restored, ...]:
    """Finish what killed restores were about to put in its place there; return what came of each. Blocks.

    Raises RestoreError.
    """
    if not directory.is_dir():
        return ()
    with RestoreDirectoryFiles(directory, find_holder) as place:
        return place.finish()


def check_destination(settings: Settings, to: Path) -> None:
    """Refuse the state directory and the target's directory, and what is inside of them. Blocks. Raises RestoreError.

    Restored files beside the ledger, or among the uploads, would be taken for the agent's own or for objects. The
    parent of the state directory is refused, too: it is named by mistake.
    """
    state = settings.agent_state_dir
    if _is_inside(to, state) or _is_same(to, state.absolute().parent):
        raise RestoreError(
            f"{to} is the agent's own place: its state directory is {state}", hint="choose another directory for --to"
        )
    target = settings.directory / settings.cloud_bucket if settings.directory is not None else None
    if target is not None and _is_inside(to, target):
        raise RestoreError(
            f"{to} is inside the directory that holds the uploads, {target}", hint="choose another directory for --to"
        )


def _is_inside(path: Path, directory: Path) -> bool:
    real = path.resolve()
    return any(_is_same(each, directory) for each in (real, *real.parents))


def _is_same(one: Path, other: Path) -> bool:
    """Compare by what is there: names may differ in case, or lead through links and mounts."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
