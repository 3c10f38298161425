"""The memories of an upload: the rows of its databases that the target lacks, written to memories.json.

They are staged in the ledger under the upload's ID, and count as delivered only once the upload is finished.
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
    """The memories of an upload: `part`, and the `draft` with its bytes. Both are None if no database was read.

    `errors`: databases whose rows are not in it -> the reason. `time_zone`: name of the zone of the rows' naive times.
    """

    part: MemoriesPart | None
    draft: MemoriesDraft | None
    errors: Mapping[str, SnapshotError]
    time_zone: str

    @property
    def without(self) -> dict[str, str]:
        """`errors` as text, for the manifest."""
        return {database: error.message for database, error in self.errors.items()}


class _Unreadable(Exception):  # noqa: N818 - internal to this module
    def __init__(self, database: str, error: SnapshotError) -> None:
        super().__init__(database)
        self.database, self.error = database, error


class MemoryDelta:
    """Writes memories.json for uploads to one target.

    `zone` is called for each upload, because a machine may travel, and in a thread, because it reads files.
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
        """Write the rows of these databases that the target lacks. The file is removed when the block ends.

        A database that cannot be read has no rows in the file or in the ledger.
        """
        zone = await asyncio.to_thread(self._zone)
        errors = {name: copy.check_error() for name, copy in snapshots.items() if not copy.is_readable}
        for name, unverified in errors.items():
            _log.warning("memories_unreadable", database=name, error=unverified.message)
        part = draft = None
        await self._memories.unstage(self._target)
        async with AsyncExitStack() as written:
            while readable := {name: copy for name, copy in sorted(snapshots.items()) if name not in errors}:
                try:
                    draft = await written.enter_async_context(self._file.write(self._target.system_id))
                    part = await self._fill(draft, readable, upload_id, zone)
                    break
                except _Unreadable as error:  # start over without it: this is rare, and fails early
                    errors[error.database] = error.error
                    _log.warning("memories_unreadable", database=error.database, error=str(error.error))
                except SnapshotError as error:
                    errors |= dict.fromkeys(readable, error)
                    _log.warning("memories_not_written", error=str(error))
                draft = None
                await written.aclose()
                await self._memories.unstage(self._target)
            yield Delta(part=part, draft=draft, errors=errors, time_zone=zone_name(zone))

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
            key=naming.memories_key(self._target.system_id, upload_id, gzipped=written.compression == "gzip"),
            raw_size=written.raw_size,
            stored_size=written.stored_size,
            sha256=written.sha256,
            compression=written.compression,
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
    """Return a zone's IANA name, else its UTC offset (+02:00), else ""."""
    name = getattr(zone, "key", None)
    if isinstance(name, str) and name != "local":
        return name
    offset = zone.utcoffset(None)
    return "" if offset is None else datetime(2000, 1, 1, tzinfo=timezone(offset)).isoformat()[19:]
