"""The memories of an upload: those rows of its databases that the target lacks, in memories.json.

They are staged in the ledger under the upload's id, and delivered with it. Where the upload is not finished, none was.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo

import structlog

from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.delivery_state import Target
from agent.domain.errors import SnapshotError
from agent.domain.manifest import MemoriesPart
from agent.ports import MemoriesDraft, MemoriesFile, MemoryLedger, MemoryReader, Snapshot

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What an upload has of memories: `part` and the `draft` with its bytes, None both where no database was read.

    `without` says of each database whose rows are not in it why; `time_zone` is that of their naive times, by name.
    """

    part: MemoriesPart | None
    draft: MemoriesDraft | None
    without: Mapping[str, str]
    time_zone: str


class _Unreadable(Exception):  # noqa: N818 - a turn of events between two methods here
    def __init__(self, database: str, why: SnapshotError) -> None:
        super().__init__(database)
        self.database, self.why = database, why


class MemoryDelta:
    """Makes memories.json for uploads to one target.

    `zone` is asked each time, on a thread: a machine may travel, and finding out where it is reads files.
    """

    def __init__(
        self,
        *,
        target: Target,
        reader: MemoryReader,
        memories: MemoryLedger,
        file: MemoriesFile,
        zone: Callable[[], tzinfo],
    ) -> None:
        self._target, self._reader, self._memories, self._file, self._zone = target, reader, memories, file, zone

    @asynccontextmanager
    async def of(self, snapshots: Mapping[str, Snapshot], upload_id: str) -> AsyncIterator[Delta]:
        """Write what the target lacks of these databases; when the block ends, the file is removed.

        A database that cannot be read leaves nothing of itself behind, neither in the file nor in the ledger.
        """
        zone = await asyncio.to_thread(self._zone)
        without = {name: copy.unverified_reason for name, copy in snapshots.items() if not copy.is_readable}
        for name, why in without.items():
            _log.warning("memories_unreadable", database=name, error=why)
        part = draft = None
        await self._memories.unstage(self._target)
        async with AsyncExitStack() as written:
            while readable := {name: copy for name, copy in sorted(snapshots.items()) if name not in without}:
                try:
                    draft = await written.enter_async_context(self._file.write(self._target.system_id))
                    part = await self._fill(draft, readable, upload_id, zone)
                    break
                except _Unreadable as error:  # once more without it: such a database is rare, and fails early
                    without[error.database] = error.why.message
                    _log.warning("memories_unreadable", database=error.database, error=str(error.why))
                except SnapshotError as error:
                    without |= dict.fromkeys(readable, error.message)
                    _log.warning("memories_not_written", error=str(error))
                draft = None
                await written.aclose()
                await self._memories.unstage(self._target)
            yield Delta(part=part, draft=draft, without=without, time_zone=zone_name(zone))

    async def _fill(
        self, draft: MemoriesDraft, copies: Mapping[str, Snapshot], upload_id: str, zone: tzinfo
    ) -> MemoriesPart:
        bases = await self._memories.bases(self._target)
        for database, copy in copies.items():
            try:
                await self._append(draft, copy, upload_id, zone)
                await draft.flush()
            except SnapshotError as error:
                raise _Unreadable(database, error) from error
        written = await draft.finish()
        return MemoriesPart(
            key=naming.memories_key(self._target.system_id, upload_id),
            size=written.size,
            sha256=written.sha256,
            count=written.count,
            bases={database: bases.get(database) for database in copies},
        )

    async def _append(self, draft: MemoriesDraft, copy: Snapshot, upload_id: str, zone: tzinfo) -> None:
        async with (
            self._reader.open(copy.folder / main_name(copy.database), copy.database, zone=zone) as source,
            aclosing(source.pages()) as pages,
        ):
            async for page in pages:
                lacking = await self._memories.lacking(self._target, page) if page else []
                if not lacking:
                    continue
                async with aclosing(source.read(lacking)) as memories:
                    async for memory in memories:
                        await draft.add(memory)
                await self._memories.stage(self._target, upload_id, lacking)


def zone_name(zone: tzinfo) -> str:
    """Return a zone's IANA name, or its offset where it has but that (+02:00); empty where it has neither."""
    name = getattr(zone, "key", None)
    if isinstance(name, str) and name != "local":
        return name
    offset = zone.utcoffset(None)
    return "" if offset is None else datetime(2000, 1, 1, tzinfo=timezone(offset)).isoformat()[19:]
