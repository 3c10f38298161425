"""memories.json: the rows of an upload, as Akosha's ingestion reads them. Plain JSON, one entry per line.

entry    one memory as a line, and back
writing  a file in the making, in the staging directory
reading  a file as a source of memories
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.memories_file.reading import FileSource
from agent.adapters.memories_file.writing import Draft
from agent.ports import MemoriesDraft, MemorySource

__all__ = ["JsonMemoriesFile"]


class JsonMemoriesFile:
    """Files in the making lie in `staging_dir`, mode 0600."""

    def __init__(self, staging_dir: Path) -> None:
        self._staging_dir = staging_dir

    @asynccontextmanager
    async def write(self, system_id: str) -> AsyncIterator[MemoriesDraft]:
        draft = Draft(self._staging_dir, system_id)
        try:
            await draft.begin()
            yield draft
        finally:
            await draft.discard()

    def open(self, path: Path, system_id: str) -> MemorySource:
        return FileSource(path, system_id)
