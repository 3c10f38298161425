"""From settings to a restore: an archive, a directory, and what makes files of objects."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb_files import DuckdbFolder
from agent.adapters.gunzip import Landing
from agent.adapters.lock_probe import opener
from agent.adapters.restore_place import RestorePlace
from agent.adapters.system_clock import SystemClock
from agent.application.archive import Archive
from agent.application.restoring import Restoring
from agent.domain.restoration import Restored


@asynccontextmanager
async def restoring_to(directory: Path, archive: Archive) -> AsyncIterator[Restoring]:
    """Open the directory, made where there is none, for as long as the block runs. Raises RestoreError."""
    give_back_large_blocks()
    place = await asyncio.to_thread(RestorePlace, directory, opener)
    try:
        yield Restoring(
            archive=archive,
            place=place,
            landing=Landing(place.directory),
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
    with RestorePlace(directory, opener) as place:
        return place.finish()
