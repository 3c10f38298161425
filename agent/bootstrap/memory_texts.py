"""Reads the texts of single memories from a copy of their database, for people."""

import asyncio
import shutil
from collections.abc import Collection, Mapping
from contextlib import aclosing
from datetime import UTC

import structlog

from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbSnapshotTaker
from agent.bootstrap.home import Home
from agent.domain.databases import Survey, main_name
from agent.domain.errors import SnapshotError

MOST_BYTES = 512 * 2**20
"""A larger database is not copied for a few texts."""

READING = "reading"
"""Directory in the state directory for the copies."""

Key = tuple[str, str, str]
"""The key of a row: database, kind, ID."""

_log = structlog.get_logger()


async def texts_of(home: Home, keys: Collection[Key]) -> Mapping[Key, str]:
    """Return the texts of these memories; without those of databases that are large, gone or cannot be read.

    Copies each database, as a sync does, and removes the copy.
    """
    directory = home.state.path / READING
    taker = DuckdbSnapshotTaker(home.settings.agent_data_dir, directory, clock=home.clock)
    found: dict[Key, str] = {}
    try:
        survey = await taker.survey()
        for database in sorted({database for database, _, _ in keys}):
            wanted = {key for key in keys if key[0] == database}
            found |= await _read(taker, survey, database, wanted)
    except SnapshotError as error:
        _log.info("texts_not_read", error=str(error))
    finally:
        await taker.sweep()
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    return found


async def _read(taker: DuckdbSnapshotTaker, survey: Survey, database: str, wanted: set[Key]) -> Mapping[Key, str]:
    if database not in survey or survey[database].size > MOST_BYTES:
        return {}
    copy = await taker.copy(database)
    found: dict[Key, str] = {}
    try:
        main = copy.folder / main_name(database)
        async with (
            DuckdbMemoryReader().open(main, database, zone=UTC) as source,
            aclosing(source.pages()) as pages,
        ):
            async for page in pages:
                rows = [row for row in page if row.key in wanted]
                async with aclosing(source.read(rows)) as memories:
                    found |= {memory.row.key: memory.text async for memory in memories}
                if len(found) == len(wanted):
                    break
    finally:
        await taker.discard(copy)
    return found
