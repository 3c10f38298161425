"""An upload becomes files again: downloaded, checked and folded out of sight, then put in its place in one go.

Whatever is in the bucket was written by others: sizes and digests are the limits of what comes in, and nothing gets
its final name before all of it is there and right. The next restore finishes what a killed one left.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from agent.application.archive.catalog import Catalog
from agent.domain.errors import AkoshaError, NoSuchObject, RestoreError, SnapshotError, StagingFull, WireError
from agent.domain.manifest import Manifest, Part, Rows
from agent.domain.restore_plan import Restorable, Restored, RestoredDatabase, restorable
from agent.ports import Clock
from agent.ports.restore import Folder, Landing, Reporter, RestoreDirectory, ScratchDirectory

P = ParamSpec("P")
T = TypeVar("T")

SPARE_BYTES = 32 * 2**20
"""What stays free on the disk."""

RAW_HINT = "--raw leaves the files as they were"

_ANOTHER = "akosha-agent verify says what is whole; restore another upload"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """What of an upload, and how: `only` these databases, `raw` as they were, by `force` over what is there."""

    only: Collection[str] = ()
    raw: bool = False
    force: bool = False


@dataclass(slots=True)
class _Downloaded:
    """What became of one database so far."""

    item: Restorable
    folded_size: int | None = None
    rows: Rows | None = None
    storage_version: int | None = None
    warning: str = ""

    @property
    def folded(self) -> bool:
        return self.folded_size is not None


class _Reported:
    """The Reporter of what is fetched a second time: its bytes were reported the first time."""

    def phase(self, name: str, total_bytes: int) -> None: ...

    def moved(self, count: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Restores uploads of one archive to one place."""

    archive: Catalog
    place: RestoreDirectory
    landing: Landing
    folder: Folder
    clock: Clock

    async def restore(self, manifest: Manifest, wanted: RestoreRequest, reporter: Reporter) -> Restored:
        """Restore it. Raises RestoreError, StoreError, SettingsError; then nothing new has its final name.

        What has come is kept for the next time where trying again may help, also when cancelled.
        """
        started = self.clock.monotonic()
        chosen = restorable(manifest, only=wanted.only, raw=wanted.raw)
        databases = [item.database for item in chosen]
        await _blocking(self.place.check, databases, force=wanted.force)
        scratch = await _blocking(self.place.begin, manifest.upload_id)
        try:
            await self._make_sure_of_room(chosen, scratch)
            downloaded = 0
            prepared = [_Downloaded(item) for item in chosen]
            reporter.phase("download", sum(part.stored_size for item in chosen for part in item.parts))
            for one in prepared:
                downloaded += await self._prepare(one, scratch, reporter)
                main = await _blocking(scratch.file, one.item.main)
                one.storage_version = await _blocking(self.folder.storage_version, main)
            at = self.clock.now()
            aside = await _blocking(self.place.aside, databases, at)
            report = Restored(
                system_id=manifest.system_id,
                upload_id=manifest.upload_id,
                uploaded_at=manifest.uploaded_at.isoformat(),
                to=str(self.place.directory),
                databases=tuple(_restored_database(one, manifest, aside[one.item.database]) for one in prepared),
                downloaded_bytes=downloaded,
                duration_seconds=round(self.clock.monotonic() - started, 3),
            )
            items = [(one.item, one.folded) for one in prepared]
            await _blocking(self.place.place, items, aside, report, force=wanted.force)
        except AkoshaError as error:
            failed = _full(error, chosen, self.place) if isinstance(error, StagingFull) else error
            if not error.transient or isinstance(error, StagingFull | WireError):
                await _blocking(self.place.discard)
            if failed is not error:
                raise failed from error
            raise
        except OSError as error:
            raise RestoreError(
                f"{self.place.directory} cannot be restored to: {error.strerror}", hint="restore to another directory"
            ) from error
        _log.info(
            "restored",
            upload_id=report.upload_id,
            databases=databases,
            bytes=downloaded,
            duration_seconds=report.duration_seconds,
        )
        return report

    async def _make_sure_of_room(self, chosen: Sequence[Restorable], scratch: ScratchDirectory) -> None:
        room = await _blocking(self.place.room)
        needed = 0
        for item in chosen:
            if item.folds and await _blocking(scratch.folded, item.main) is not None:
                continue
            missing = [part for part in item.parts if not await self._has(scratch, part)]
            needed += sum(part.raw_size for part in missing) + item.room - item.size
        if room < needed + SPARE_BYTES:
            raise RestoreError(
                f"{self.place.directory} needs {needed + SPARE_BYTES:,} bytes free to restore to, and has {room:,}",
                hint="make room there, or restore to a larger disk",
            )

    async def _prepare(self, one: _Downloaded, scratch: ScratchDirectory, reporter: Reporter) -> int:
        """Have one database ready; return the bytes that were downloaded."""
        item = one.item
        if item.folds and (size := await _blocking(scratch.folded, item.main)) is not None:
            one.folded_size, one.rows = size, item.rows
            reporter.moved(sum(part.stored_size for part in item.parts))
            return 0
        downloaded = await self._land(item.parts, scratch, reporter)
        if not item.folds:
            one.rows = item.rows
            if item.unverified is not None:
                one.warning = f"was not read through when it was uploaded: {item.unverified}"
            return downloaded
        folder = await _blocking(scratch.begin_folding, item.names)
        try:
            one.rows = await self.folder.fold(folder / item.main)
        except StagingFull:
            raise
        except SnapshotError as error:
            return downloaded + await self._leave_unfolded(one, error, scratch)
        if item.rows is not None and dict(item.rows) != dict(one.rows):
            raise RestoreError(f"{item.database} holds other rows than its manifest tells", hint=RAW_HINT)
        await _blocking(scratch.end_folding, item.main)
        one.folded_size = await _blocking(scratch.folded, item.main)
        return downloaded

    async def _leave_unfolded(self, one: _Downloaded, error: SnapshotError, scratch: ScratchDirectory) -> int:
        """Take the files apart again: they have their digests, so they are the database, whatever our engine can do."""
        item = one.item
        await _blocking(scratch.undo_folding, item.names)
        downloaded = await self._land(item.parts, scratch, _Reported())
        one.rows = item.rows
        together = f"in {len(item.parts)} files that belong together"
        one.warning = f"restored as it was uploaded, {together}: {error.message}"
        if error.hint:
            one.warning += f"; {error.hint}"
        _log.warning("restored_with_sidecars", database=item.database, reason=error.message)
        return downloaded

    async def _land(self, parts: Sequence[Part], scratch: ScratchDirectory, reporter: Reporter) -> int:
        downloaded = 0
        for part in parts:
            if await self._has(scratch, part):
                reporter.moved(part.stored_size)
                continue
            await self._fetch(part, await _blocking(scratch.incoming), reporter)
            await _blocking(scratch.keep, part.name)
            downloaded += part.stored_size
        return downloaded

    async def _fetch(self, part: Part, path: Path, reporter: Reporter) -> None:
        try:
            async with self.archive.moving() as moved, aclosing(self.archive.store.get(part.key)) as pieces:

                def count_pieces(count: int) -> None:
                    moved()
                    reporter.moved(count)

                await self.landing.land(
                    _watched(pieces, count_pieces),
                    path,
                    compression=part.compression,
                    stored_size=part.stored_size,
                    raw_size=part.raw_size,
                    sha256=part.sha256,
                )
        except NoSuchObject as error:
            raise RestoreError(
                f"{part.key} is not there (any more): was the upload pruned meanwhile?",
                hint="akosha-agent uploads lists what there is",
            ) from error
        except WireError as error:
            why = error.message.replace(path.name, "the object", 1)
            raise RestoreError(f"{part.key} is not what its manifest tells: {why}", hint=_ANOTHER) from error

    @staticmethod
    async def _has(scratch: ScratchDirectory, part: Part) -> bool:
        return await _blocking(scratch.has, part.name, part.raw_size, part.sha256)


def _restored_database(one: _Downloaded, manifest: Manifest, aside: Mapping[str, str]) -> RestoredDatabase:
    item = one.item
    return RestoredDatabase(
        database=item.database,
        files=(item.main,) if one.folded else item.names,
        size=item.size if one.folded_size is None else one.folded_size,
        folded=one.folded,
        rows=dict(one.rows or {}),
        storage_version=one.storage_version,
        carried_from=item.carried_from,
        carried_age_seconds=item.carried_age(manifest.upload_id).total_seconds(),
        warning=one.warning,
        set_aside=dict(aside),
    )


def _full(error: StagingFull, chosen: Sequence[Restorable], place: RestoreDirectory) -> RestoreError:
    needed = sum(item.room for item in chosen) + SPARE_BYTES
    return RestoreError(
        f"{place.directory} is full ({error.message}): to restore there takes {needed:,} bytes",
        hint="make room there, or restore to a larger disk",
    )


async def _blocking(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it in a thread, and see it through: cancelled, it is waited for all the same."""
    task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs), name="restore-files")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _watched(pieces: AsyncIterable[bytes], count_pieces: Callable[[int], None]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        count_pieces(len(piece))
        yield piece
