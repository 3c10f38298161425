"""Builds a restore."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb import DuckdbWalMerger
from agent.adapters.gunzip import Unpacker
from agent.adapters.lock_probe import find_holder
from agent.adapters.patches import ZstdPatcher
from agent.adapters.restore_directory import RestoreDirectoryFiles
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.restore import Restore
from agent.domain.errors import RestoreError
from agent.domain.restore_plan import Restored
from agent.settings import Settings


@asynccontextmanager
async def open_restore(directory: Path, archive: Catalog) -> AsyncIterator[Restore]:
    """Open a restore to a directory, which is created if needed, until the block ends. Raises RestoreError."""
    give_back_large_blocks()
    destination = await asyncio.to_thread(RestoreDirectoryFiles, directory, find_holder)
    try:
        yield Restore(
            catalog=archive,
            directory=destination,
            unpacker=Unpacker(destination.directory),
            patcher=ZstdPatcher(),
            wal_merger=DuckdbWalMerger(),
            clock=SystemClock(),
        )
    finally:
        destination.close()


def finish_restores(directory: Path) -> tuple[Restored, ...]:
    """Finish restores to a directory that were killed while they moved files to their final names.

    Return their reports. Blocks. Raises RestoreError.
    """
    if not directory.is_dir():
        return ()
    with RestoreDirectoryFiles(directory, find_holder) as destination:
        return destination.finish()


def check_destination(settings: Settings, to: Path) -> None:
    """Reject the state directory, the target's directory, and directories in them. Blocks. Raises RestoreError.

    The agent would treat restored files there as its own, or as objects of uploads. The parent of the state directory
    is rejected, too, because it must be a mistake.
    """
    state = settings.agent_state_dir
    if _is_inside(to, state) or _is_same(to, state.absolute().parent):
        raise RestoreError(
            f"{to} belongs to the agent, whose state directory is {state}", hint="choose another directory for --to"
        )
    target = settings.directory / settings.cloud_bucket if settings.directory is not None else None
    if target is not None and _is_inside(to, target):
        raise RestoreError(
            f"{to} is in the directory of the uploads, {target}", hint="choose another directory for --to"
        )


def _is_inside(path: Path, directory: Path) -> bool:
    real = path.resolve()
    return any(_is_same(each, directory) for each in (real, *real.parents))


def _is_same(one: Path, other: Path) -> bool:
    """Compare the directories themselves: their paths may differ in case, or by links and mounts."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
