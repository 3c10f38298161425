"""The deep part of a verification: an upload's objects downloaded, hashed, and read through."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.application.archive.catalog import NOT_THERE, Catalog, object_name
from agent.application.ingest.upload_ingester import Landing
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.errors import NoSuchObject, SnapshotError, WireError
from agent.domain.manifest import Compression, Manifest, MemoriesPart, Part
from agent.ports import MemoriesFile, Progress


class Verdict(Protocol):
    """What a look into a database found. `damaged`: it looks wrong, rather than that it cannot be looked into here."""

    @property
    def verified(self) -> bool: ...

    @property
    def reason(self) -> str: ...

    @property
    def damaged(self) -> bool: ...

    @property
    def rows(self) -> Mapping[str, int]: ...


Examine = Callable[[Path], Awaitable[Verdict]]
"""Opens a database's main file, sidecars beside it, in a process of its own, and reads every table through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepCheckTools:
    """What a deep look needs: where objects become files, who reads databases, and who reads memories."""

    landing: Landing
    examine: Examine
    memories_file: MemoriesFile


class DeepCheck:
    """Looks into the objects of one archive. What it finds goes into `problems`, by an object's name in the upload.

    Raises StoreError where the store does not answer; StagingFull, StateError for our own disk.
    """

    def __init__(self, archive: Catalog, means: DeepCheckTools) -> None:
        self._archive, self._means = archive, means

    async def database(
        self,
        manifest: Manifest,
        database: str,
        problems: dict[str, str],
        notes: dict[str, str],
        progress: Progress,
    ) -> None:
        """Download a database, and read it where all of it is as it should be."""
        parts = manifest.of(database)
        sound = [part for part in parts if object_name(part.key) not in problems]
        async with self._means.landing.folder(sum(part.raw_size for part in sound)) as folder:
            for part in sound:
                if why := await self._fetch(part, folder / part.name, progress):
                    problems[object_name(part.key)] = why
            if len(sound) < len(parts) or any(object_name(part.key) in problems for part in parts):
                return
            main = next((part for part in parts if part.name == main_name(database)), None)
            if main is None:
                problems[object_name(parts[0].key)] = f"is part of {main_name(database)}, which is not in the upload"
                return
            verdict = await self._means.examine(folder / main.name)
            rows = manifest.rows.get(database)
            if verdict.verified and rows is not None and dict(verdict.rows) != dict(rows):
                problems[object_name(main.key)] = f"has other rows than its manifest tells: {_differing(rows, verdict)}"
            elif not verdict.verified and verdict.damaged and main.verified:
                problems[object_name(main.key)] = verdict.reason
            elif not verdict.verified:
                notes[database] = verdict.reason

    async def memories(
        self, manifest: Manifest, told: MemoriesPart, problems: dict[str, str], progress: Progress
    ) -> None:
        """Download memories.json, and read it to its end."""
        async with self._means.landing.folder(told.size) as folder:
            path = folder / naming.MEMORIES_NAME
            why = await self._fetch(told, path, progress)
            if not why:
                source, count = self._means.memories_file.open(path, manifest.system_id), 0
                try:
                    async with aclosing(source.pages()) as pages:
                        async for page in pages:
                            count += len(page)
                except (WireError, SnapshotError) as error:
                    why = error.message
                else:
                    why = "" if count == told.count else f"has {count} memories, its manifest tells {told.count}"
            if why:
                problems[naming.MEMORIES_NAME] = why

    async def _fetch(self, told: Part | MemoriesPart, path: Path, progress: Progress) -> str:
        """Download an object to a file; return what is wrong with it, "" for nothing."""
        compression: Compression
        compression, stored_size, raw_size = (
            (told.compression, told.stored_size, told.raw_size)
            if isinstance(told, Part)
            else ("none", told.size, told.size)
        )

        async def watched() -> AsyncIterator[bytes]:
            async for piece in pieces:
                moved()
                progress(len(piece))
                yield piece

        try:
            async with self._archive.moving() as moved, aclosing(self._archive.store.get(told.key)) as pieces:
                await self._means.landing.land(
                    watched(),
                    path,
                    compression=compression,
                    stored_size=stored_size,
                    raw_size=raw_size,
                    sha256=told.sha256,
                )
        except NoSuchObject:
            return NOT_THERE
        except WireError as error:
            return error.message.removeprefix(f"{path.name} ")
        return ""


def _differing(rows: Mapping[str, int], verdict: Verdict) -> str:
    names = sorted({*rows, *verdict.rows})
    return ", ".join(
        f"{name} {verdict.rows.get(name, 0)}, not {rows.get(name, 0)}"
        for name in names
        if verdict.rows.get(name) != rows.get(name)
    )
