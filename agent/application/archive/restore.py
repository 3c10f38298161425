"""Restore an upload: download, check and fold its files in a scratch directory, then move them to their final names.

The contents of the bucket are not trusted: the recorded sizes and digests limit what is downloaded, and no file gets
its final name before all files are complete and correct. The next restore finishes one that was killed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog

from agent.application.archive.catalog import Catalog
from agent.application.sync.download import Downloader, DownloadError, disk_bytes
from agent.domain.errors import AkoshaError, RestoreError, SnapshotError, StagingFull, WireError
from agent.domain.manifest import Manifest, Rows
from agent.domain.restore_plan import Restorable, Restored, RestoredDatabase, restorable
from agent.domain.upload_parts import ObjectRecord, Part
from agent.ports import Clock, Patcher
from agent.ports.methods import NoReporter, Reporter
from agent.ports.restore import RestoreDirectory, ScratchDirectory, WalMerger
from agent.ports.unpacking import Unpacker

P = ParamSpec("P")
T = TypeVar("T")

SPARE_BYTES = 32 * 2**20
"""Space that a restore leaves free on the disk."""

RAW_HINT = "--raw restores the files as they were uploaded"

_ANOTHER = "akosha-agent verify --all finds complete uploads: restore another one, or the other databases with --only"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """Options of a restore: `only` these databases (empty: all), `raw` files without folding, `force` to overwrite."""

    only: Collection[str] = ()
    raw: bool = False
    force: bool = False


@dataclass(slots=True)
class _Downloaded:
    """One downloaded database; `folded_size` is None until it is folded."""

    item: Restorable
    folded_size: int | None = None
    rows: Rows | None = None
    storage_version: int | None = None
    warning: str = ""

    @property
    def folded(self) -> bool:
        return self.folded_size is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Restores uploads of one catalog to one directory."""

    catalog: Catalog
    directory: RestoreDirectory
    unpacker: Unpacker
    patcher: Patcher
    wal_merger: WalMerger
    clock: Clock

    async def restore(self, manifest: Manifest, request: RestoreRequest, reporter: Reporter) -> Restored:
        """Restore an upload. Raises RestoreError, StoreError, SettingsError; then no new file has its final name.

        If a retry may succeed, and after a cancellation, the downloaded files are kept for it.
        """
        started = self.clock.monotonic()
        chosen = restorable(manifest, only=request.only, raw=request.raw)
        databases = [item.database for item in chosen]
        await _blocking(self.directory.check, databases, force=request.force)
        scratch = await _blocking(self.directory.begin, manifest.upload_id)
        try:
            await self._check_free_space(chosen, scratch)
            downloaded = 0
            prepared = [_Downloaded(item) for item in chosen]
            reporter.phase("download", sum(part.stored_size for item in chosen for part in item.parts))
            for one in prepared:
                downloaded += await self._prepare(one, scratch, reporter)
                main = await _blocking(scratch.file, one.item.main)
                one.storage_version = await _blocking(self.wal_merger.storage_version, main)
            at = self.clock.now()
            aside = await _blocking(self.directory.aside_names, databases, at)
            report = Restored(
                system_id=manifest.system_id,
                upload_id=manifest.upload_id,
                uploaded_at=manifest.uploaded_at.isoformat(),
                to=str(self.directory.directory),
                databases=tuple(_restored_database(one, manifest, aside[one.item.database]) for one in prepared),
                downloaded_bytes=downloaded,
                duration_seconds=round(self.clock.monotonic() - started, 3),
            )
            items = [(one.item, one.folded) for one in prepared]
            await _blocking(self.directory.install, items, aside, report, force=request.force)
        except AkoshaError as error:
            failed = _disk_full(error, chosen, self.directory) if isinstance(error, StagingFull) else error
            if not error.transient or isinstance(error, StagingFull | WireError):
                await _blocking(self.directory.discard)
            if failed is not error:
                raise failed from error
            raise
        except OSError as error:
            raise RestoreError(
                f"{self.directory.directory} cannot be written: {error.strerror}", hint="restore to another directory"
            ) from error
        _log.info(
            "restored",
            upload_id=report.upload_id,
            databases=databases,
            bytes=downloaded,
            duration_seconds=report.duration_seconds,
        )
        return report

    async def _check_free_space(self, chosen: Sequence[Restorable], scratch: ScratchDirectory) -> None:
        free = await _blocking(self.directory.free_bytes)
        needed = 0
        for item in chosen:
            if item.folds and await _blocking(scratch.folded, item.main) is not None:
                continue
            missing = [part for part in item.parts if not await _has(scratch, part.name, part)]
            needed += sum(disk_bytes(part) for part in missing) + item.disk_bytes - item.size
            layers = [layer for part in missing for layer in part.layers]
            needed -= sum([layer.raw_size for layer in layers if await _has(scratch, _layer_name(layer), layer)])
        if free < needed + SPARE_BYTES:
            raise RestoreError(
                f"{self.directory.directory} has {free:,} bytes free, the restore needs {needed + SPARE_BYTES:,}",
                hint="free disk space, or restore to a larger disk",
            )

    async def _prepare(self, one: _Downloaded, scratch: ScratchDirectory, reporter: Reporter) -> int:
        """Download and fold one database; return the number of downloaded bytes."""
        item = one.item
        if item.folds and (size := await _blocking(scratch.folded, item.main)) is not None:
            one.folded_size, one.rows = size, item.rows
            reporter.kept(sum(part.stored_size for part in item.parts))
            return 0
        downloaded = await self._land(item.parts, scratch, reporter)
        if not item.folds:
            one.rows = item.rows
            if item.unverified is not None:
                one.warning = f"was not verified before the upload: {item.unverified}"
            return downloaded
        folder = await _blocking(scratch.begin_folding, item.names)
        try:
            one.rows = await self.wal_merger.fold(folder / item.main)
        except StagingFull:
            raise
        except SnapshotError as error:
            return downloaded + await self._leave_unfolded(one, error, scratch)
        if item.rows is not None and dict(item.rows) != dict(one.rows):
            raise RestoreError(f"{item.database} has other row counts than its manifest records", hint=RAW_HINT)
        await _blocking(scratch.end_folding, item.main)
        one.folded_size = await _blocking(scratch.folded, item.main)
        return downloaded

    async def _leave_unfolded(self, one: _Downloaded, error: SnapshotError, scratch: ScratchDirectory) -> int:
        """Restore the separate files: their digests match, so they are the database even if DuckDB cannot fold them."""
        item = one.item
        await _blocking(scratch.undo_folding, item.names)
        downloaded = await self._land(item.parts, scratch, NoReporter())
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
            if await _has(scratch, part.name, part):
                reporter.kept(part.stored_size)
                continue
            for item in part.objects:  # layers are kept, so that a restore that was interrupted goes on with them
                name = _layer_name(item) if part.layers else part.name
                if part.layers and await _has(scratch, name, item):
                    reporter.kept(item.stored_size)
                    continue
                async with _described_errors():
                    await self._downloader.download(item, await _blocking(scratch.incoming), reporter.moved)
                await _blocking(scratch.keep, name)
                downloaded += item.stored_size
            if part.layers:
                await self._assemble(part, scratch)
        return downloaded

    async def _assemble(self, part: Part, scratch: ScratchDirectory) -> None:
        names = [_layer_name(layer) for layer in part.layers]
        layers = [await _blocking(scratch.kept, name) for name in names]
        async with _described_errors():
            await self._downloader.assemble(part, layers, await _blocking(scratch.incoming))
        await _blocking(scratch.keep, part.name)
        await _blocking(scratch.drop, names)

    @property
    def _downloader(self) -> Downloader:
        return Downloader(
            store=self.catalog.store,
            unpacker=self.unpacker,
            patcher=self.patcher,
            stall_limit=self.catalog.stall_limit,
        )


@asynccontextmanager
async def _described_errors() -> AsyncIterator[None]:
    """Raise a RestoreError for a DownloadError."""
    try:
        yield
    except DownloadError as failed:
        if failed.is_missing:
            raise RestoreError(
                f"{failed.key} is missing: was the upload pruned meanwhile?",
                hint="akosha-agent uploads lists the uploads",
            ) from failed
        raise RestoreError(
            f"{failed.key} does not match its manifest: the object {failed.problem}", hint=_ANOTHER
        ) from failed


async def _has(scratch: ScratchDirectory, name: str, file: Part | ObjectRecord) -> bool:
    return await _blocking(scratch.has, name, file.raw_size, file.sha256)


def _layer_name(layer: ObjectRecord) -> str:
    """Return the name of a layer in the scratch directory. No file of a database has such a name."""
    return f".{layer.sha256}"


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


def _disk_full(error: StagingFull, chosen: Sequence[Restorable], to: RestoreDirectory) -> RestoreError:
    needed = sum(item.disk_bytes for item in chosen) + SPARE_BYTES
    return RestoreError(
        f"{to.directory} is full ({error.message}): the restore needs {needed:,} bytes",
        hint="free disk space, or restore to a larger disk",
    )


async def _blocking(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread. If cancelled, wait until the thread has finished."""
    task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs), name="restore-files")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
