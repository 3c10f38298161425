"""Shared by the commands and the MCP tool that read or change uploads."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from agent.application.archive.catalog import Catalog, CatalogEntry
from agent.application.archive.command_results import CommandResults
from agent.application.archive.deep_schedule import DeepSchedule
from agent.application.archive.verify import missing_upload
from agent.bootstrap.home import Home
from agent.domain.errors import AlreadyRunning, LedgerDamaged, NamingError, NoSuchObject, SettingsError, StoreError
from agent.domain.events import UploadsPruned, UploadVerified
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.naming import check_system_id
from agent.domain.routing import CLOUD
from agent.settings import Settings


async def system_of(settings: Settings, system: str | None) -> str:
    """Return the system ID that `--system` names, or this machine's if it is None. Raises SettingsError, StateError."""
    if system is None:
        return (await asyncio.to_thread(Home.of(settings).prepare)).system_id
    try:
        return check_system_id(system)
    except NamingError as error:
        raise SettingsError(f"--system: {error.message}", hint=error.hint) from error


@asynccontextmanager
async def systems_as_hint(archive: Catalog, system: str | None) -> AsyncIterator[None]:
    """Let a NoSuchObject of the block name the systems that have uploads, if `--system` names another one."""
    try:
        yield
    except NoSuchObject as error:
        if system is None:
            raise
        from agent.application.ingest.service import systems_in  # noqa: PLC0415 - only after a mistake

        if system in (known := await systems_in(archive.store)):
            raise
        hint = f"systems with uploads there: {', '.join(known)}" if known else "no system has uploads there"
        raise NoSuchObject(error.message, hint=hint) from error


async def check_mounted(settings: Settings, archive: Catalog, system: str | None) -> None:
    """Raise NotOwner if this machine's uploads are missing because the disk of the target directory is not mounted.

    Does nothing if `--system` names another system. Raises StateError.
    """
    if system is None:
        home = Home.of(settings)
        async with home.ownership(await asyncio.to_thread(home.prepare), archive.store) as ownership:
            await ownership.check_mounted()


@asynccontextmanager
async def absence_recorded(settings: Settings, archive: Catalog, system: str | None) -> AsyncIterator[None]:
    """If the block raises a StoreError that is not transient, record which uploads of the ledger are missing.

    For example, the bucket does not exist any more.
    """
    try:
        yield
    except StoreError as error:
        if not error.transient:
            with suppress(StoreError):  # the block's error is the one to report
                await record_missing(settings, archive, system)
        raise


async def record_missing(
    settings: Settings, archive: Catalog, system: str | None, present: Collection[str] = ()
) -> str | None:
    """Record which uploads of the ledger are missing in the target: the newest one, and those known to be damaged.

    Return the ID of the newest one if it is missing, so that the next sync uploads its databases again; else None.
    `present` are uploads that are known to exist. Does nothing if `--system` names another system. Raises StoreError,
    NotOwner if the disk of the target directory is not mounted, StateError.
    """
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    if archive.system_id != identity.system_id:
        return None
    newest, damaged = None, set[str]()
    with suppress(LedgerDamaged):  # then it is not known which upload is the newest
        newest, damaged = await _recorded_uploads(home, identity)
    suspects = ({newest} if newest else set[str]()) | damaged
    missing = []
    if suspects := suspects - {*present}:
        await check_mounted(settings, archive, system)
        async with archive.stall_limit():
            missing = [upload for upload in sorted(suspects) if not await archive.uploads.exists(upload)]
    await record_events(home, identity, *(missing_upload(upload).event(identity, home.clock) for upload in missing))
    return newest if newest in missing else None


def missing_text(upload: str) -> str:
    """Return a sentence about the newest upload in the ledger, which is missing."""
    return f"this machine's newest upload, {upload}, is missing (akosha-agent sync uploads its databases again)"


async def _recorded_uploads(home: Home, identity: Identity) -> tuple[str | None, set[str]]:
    """Return the newest upload in the ledger, and those that are known to be damaged."""
    target = home.targets(identity).get(CLOUD)
    if target is None or not await home.has_ledger():
        return None, set()
    ledger = await home.read_ledger()
    try:
        damaged = DeepSchedule.from_notes(await ledger.notes()).damaged
        return (await ledger.record(target)).newest_upload_id, {*damaged}
    finally:
        await ledger.aclose()


async def record_events(home: Home, identity: Identity, *events: UploadVerified | UploadsPruned) -> None:
    """Write events of this system to the ledger's history and outbox, and to the status; an agent publishes them.

    If another process holds the ledger lock, leave the events as notes in the spool. Raises StateError.
    """
    if not events:
        return
    try:
        with home.lock("announce", retry=False):
            ledger = await home.open_ledger()
            try:
                results = CommandResults(home.targets(identity).get(CLOUD), ledger, home.clock)
                for event in events:
                    await results.record(event)
            finally:
                await ledger.aclose()
    except AlreadyRunning:
        for event in events:
            await home.leave_note(event)


def upload_document(entry: CatalogEntry) -> dict[str, object]:
    """Return the JSON document of an upload.

    Fields are null if its manifest was not read or cannot be read; `problems` then has the reason.
    """
    manifest = entry.manifest
    return {
        "upload_id": entry.upload_id,
        "time": entry.at.isoformat(),
        "stored_bytes": entry.stored_bytes,
        "raw_bytes": entry.raw_bytes,
        "rows": entry.rows,
        "databases": sorted({part.database for part in manifest.parts}) if manifest else None,
        "verified": all(part.verified for part in manifest.parts) if manifest else None,
        "carried": carried_databases(manifest) if manifest else None,
        "triggered_by": manifest.triggered_by if manifest else None,
        "problems": dict(entry.problems),
    }


def carried_databases(manifest: Manifest) -> list[str]:
    """Return the databases whose files were carried over from an earlier upload."""
    return sorted({part.database for part in manifest.parts if part.origin == "carried"})
