"""Puts uploads of other machines into a store in one line, for tests of their readers.

The file of a database is a text with a number per row; `LinesReader` reads it as the memories with those numbers.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta, tzinfo
from pathlib import Path

from agent.adapters.gzip_members import GzipMembers
from agent.adapters.memories_file import JsonMemoriesFile
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.errors import SnapshotError
from agent.domain.manifest import Manifest
from agent.domain.memories import Memory
from agent.domain.upload_parts import MemoriesPart, Part
from agent.ports import ObjectStore, WrittenMemories, ignore_progress
from tests.support.memories import memory
from tests.support.memory_source import ListedMemories
from tests.support.values import NOON

UNREADABLE = b"version 999"


@dataclass
class Sender:
    """The agent `agent_id` of one system. `scratch` is a folder for temporary files."""

    store: ObjectStore
    scratch: Path
    system: str = "laptop-7"
    agent_id: str = "a" * 32

    def id(self, second: int) -> str:
        return naming.upload_id(NOON + timedelta(seconds=second), self.system)

    async def upload(
        self,
        second: int,
        rows: Sequence[int] | bytes,
        *,
        new: Sequence[Memory | int] | None = None,
        base: int | None = None,
        database: str = "reflection",
        spoiled: Mapping[str, bytes] = {},
        without_memories: bool = False,
        omitted: bool = False,
        **more: object,
    ) -> Manifest:
        """Put the upload of that second: a database with `rows`, of which `new` (None: all) are in memories.json.gz.

        `omitted`: its memories are left out, and it is a base. `base`: the second of the base upload. `spoiled`:
        name -> bytes to store instead of the object. `more` replaces fields of the manifest.
        """
        upload = self.id(second)
        raw = rows if isinstance(rows, bytes) else "".join(f"{row}\n" for row in rows).encode()
        memories = [memory(each) if isinstance(each, int) else each for each in (new if new is not None else rows)]
        stored = await self._gzipped(raw)
        name = main_name(database)
        part = Part(
            database=database, name=name, key=naming.object_key(self.system, upload, name), raw_size=len(raw),
            stored_size=len(stored), sha256=hashlib.sha256(raw).hexdigest(), compression="gzip", origin="sent",
            verified=True,
        )  # fmt: skip
        reported = None
        if not without_memories and not omitted:
            document, written = await self._document(memories)
            reported = MemoriesPart(
                key=naming.memories_key(self.system, upload, gzipped=True), raw_size=written.raw_size,
                stored_size=written.stored_size, sha256=written.sha256, compression=written.compression,
                count=written.count, bases={database: None if base is None else self.id(base)},
            )  # fmt: skip
            await self._put(reported.key, spoiled.get("memories.json.gz", document))
        await self._put(part.key, spoiled.get(name, stored))
        manifest = replace(
            Manifest(
                system_id=self.system, upload_id=upload, uploaded_at=NOON + timedelta(seconds=second),
                request_id=f"r{second}", agent_id=self.agent_id, triggered_by="manual", parts=(part,),
                memories=reported, memories_omitted={database: "there is no base upload"} if omitted else {},
                time_zone="Europe/Berlin",
            ),
            **more,
        )  # fmt: skip
        await self._put(naming.manifest_key(self.system, upload), spoiled.get("manifest.json", manifest.encode()))
        return manifest

    async def _put(self, key: str, data: bytes) -> None:
        async def body() -> AsyncGenerator[bytes, None]:
            yield data

        await self.store.put(key, body(), metadata={}, part_bytes=2**23, progress=ignore_progress)

    async def _document(self, memories: Sequence[Memory]) -> tuple[bytes, WrittenMemories]:
        async with JsonMemoriesFile(self.scratch).write(self.system) as draft:
            for each in memories:
                await draft.add(each)
            written = await draft.finish()
            return b"".join([piece async for piece in draft.stream()]), written

    async def _gzipped(self, raw: bytes) -> bytes:
        self.scratch.mkdir(exist_ok=True)
        path = self.scratch / "raw"
        path.write_bytes(raw)
        return b"".join([piece async for piece in GzipMembers(member_bytes=4).stream(path)])


class LinesReader:
    """A MemoryReader of these files. `opened`: the rows of each opened file; `sources`: what read them."""

    def __init__(self) -> None:
        self.opened: list[list[int]] = []
        self.sources: list[ListedMemories] = []

    @asynccontextmanager
    async def open(self, copy: Path, database: str, *, zone: tzinfo) -> AsyncIterator[ListedMemories]:
        assert zone is not None
        raw = copy.read_bytes()
        if raw == UNREADABLE:
            raise SnapshotError(f"{database} was made by a newer DuckDB", hint="update akosha-agent")
        rows = [int(line) for line in raw.split()]
        self.opened.append(rows)
        self.sources.append(ListedMemories([memory(row) for row in rows]))
        yield self.sources[-1]
