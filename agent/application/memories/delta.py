"""The memories of an upload: the rows of its databases that the target lacks, written to memories.json.

The rows that the target has with the upload are staged in the ledger under the upload's ID, and count as delivered only
once the upload is finished.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo

import structlog

from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.delivery_state import Target
from agent.domain.errors import SnapshotError
from agent.domain.memories import RowState
from agent.domain.upload_parts import MemoriesPart
from agent.ports import (
    DatabaseSource,
    MemoriesDraft,
    MemoriesFile,
    MemoryLedger,
    MemoryReader,
    RowDifference,
    Snapshot,
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The memories of an upload: `part`, and the `draft` with its bytes. Both are None if there is no memories.json.

    `omitted`: databases whose rows were left out -> the reason; `errors`: those that cannot be read -> the reason.
    `time_zone`: name of the zone of the rows' naive times.
    """

    part: MemoriesPart | None
    draft: MemoriesDraft | None
    omitted: Mapping[str, str]
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

    It has the rows that are new since a database's base. A database without a base, or of which a large part is new, is
    left out: a reader reads the database itself. `complete`: it has the new rows of every database, all without a base.
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
        complete: bool = False,
    ) -> None:
        self._target, self._reader, self._memories, self._file, self._zone = target, reader, memories, file, zone
        self._complete = complete

    @asynccontextmanager
    async def of(
        self, snapshots: Mapping[str, Snapshot], upload_id: str, *, without_base: Collection[str] = ()
    ) -> AsyncIterator[Delta]:
        """Write the rows of these databases that the target lacks. The file is removed when the block ends.

        A database that cannot be read has no rows in the file or in the ledger. `without_base`: databases whose base is
        not used.
        """
        zone = await asyncio.to_thread(self._zone)
        errors = {name: copy.check_error() for name, copy in snapshots.items() if not copy.is_readable}
        for name, unverified in errors.items():
            _log.warning("memories_unreadable", database=name, error=unverified.message)
        part = draft = None
        omitted: Mapping[str, str] = {}
        bases = {name: base for name, base in (await self.bases()).items() if name not in without_base}
        await self._memories.unstage(self._target)
        async with AsyncExitStack() as written:
            while readable := {name: copy for name, copy in sorted(snapshots.items()) if name not in errors}:
                try:
                    draft = await written.enter_async_context(self._file.write(self._target.system_id))
                    part, omitted = await self._fill(draft, readable, bases, upload_id, zone)
                    draft = draft if part else None
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
            yield Delta(part=part, draft=draft, omitted=omitted, errors=errors, time_zone=zone_name(zone))

    async def bases(self) -> Mapping[str, str]:
        """Return database -> the upload that its next memories are a change to."""
        return await self._memories.bases(self._target)

    async def _fill(
        self,
        draft: MemoriesDraft,
        copies: Mapping[str, Snapshot],
        known_bases: Mapping[str, str],
        upload_id: str,
        zone: tzinfo,
    ) -> tuple[MemoriesPart | None, Mapping[str, str]]:
        """Return the finished part, None if no database has rows in it, and the omitted databases with the reasons."""
        bases: dict[str, str | None] = {}
        omitted: dict[str, str] = {}
        for database, copy in copies.items():
            try:
                base, reason = await self._append(draft, copy, known_bases.get(database), upload_id, zone)
                await draft.flush()
            except SnapshotError as error:
                raise _Unreadable(database, error) from error
            if reason:
                omitted[database] = reason
            else:
                bases[database] = base
        if not bases:
            return None, omitted
        written = await draft.finish()
        part = MemoriesPart(
            key=naming.memories_key(self._target.system_id, upload_id, gzipped=written.compression == "gzip"),
            raw_size=written.raw_size,
            stored_size=written.stored_size,
            sha256=written.sha256,
            compression=written.compression,
            count=written.count,
            bases=bases,
        )
        return part, omitted

    async def _append(
        self, draft: MemoriesDraft, copy: Snapshot, base: str | None, upload_id: str, zone: tzinfo
    ) -> tuple[str | None, str]:
        """Stage the rows of a database, and append those that are new since the base to the draft.

        Return the base, and "" or the reason why none were appended.
        """
        database = copy.database
        async with self._reader.open(copy.folder / main_name(database), database, zone=zone) as source:
            if base and not await self._memories.known_rows(self._target, database, source.known_rows):
                base = None
            difference = await source.compare(copy.main_sha256)
            omitted = "" if self._complete else _reason_to_omit(base, difference, copy)
            if not omitted or difference is None:
                async with aclosing(source.pages()) as pages:
                    async for page in pages:  # raises an error if the rows cannot be read
                        if not omitted:
                            await self._append_page(draft, source, page)
            if difference is None:
                return None, omitted
            await self._memories.stage(self._target, upload_id, database, await source.row_set())
        return base, omitted

    @staticmethod
    async def _append_page(draft: MemoriesDraft, source: DatabaseSource, page: Sequence[RowState]) -> None:
        async with aclosing(source.read(page)) as memories:
            async for memory in memories:
                await draft.add(memory)


def _reason_to_omit(base: str | None, difference: RowDifference | None, copy: Snapshot) -> str:
    """Return why the rows of a database are left out, "" if they are not.

    They are a change if the new ones have at most half as many bytes, of text and embeddings, as the database's files.
    """
    if base is None:
        return "there is no base upload"
    if difference is None:
        return "the rows cannot be compared with the base upload"
    return "most rows are new" if difference.new_bytes * 2 > sum(file.size for file in copy.files) else ""


def zone_name(zone: tzinfo) -> str:
    """Return a zone's IANA name, else its UTC offset (+02:00), else ""."""
    name = getattr(zone, "key", None)
    if isinstance(name, str) and name != "local":
        return name
    offset = zone.utcoffset(None)
    return "" if offset is None else datetime(2000, 1, 1, tzinfo=timezone(offset)).isoformat()[19:]
