"""`verify`: check that uploads in the bucket are complete and undamaged."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from agent.application.archive.catalog import LATEST, Catalog
from agent.application.archive.verify import Verifier, VerifyResult, missing_upload
from agent.bootstrap.archive import open_archive, open_deep_verifier
from agent.bootstrap.home import Home
from agent.domain.errors import LedgerDamaged, NoSuchObject, SettingsError
from agent.domain.plain_text import printable
from agent.entrypoints.archive import (
    absence_recorded,
    missing_text,
    record_events,
    record_missing,
    system_of,
    systems_as_hint,
)
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson, System
from agent.entrypoints.progress_line import progress_bar
from agent.settings import Settings

app = CommandGroup()


@app.command()
async def verify(
    settings: Settings,
    upload: Annotated[
        str | None,
        typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix.", show_default="latest"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Verify every upload.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Download every object, check its SHA-256, and read every table.")
    ] = False,
    system: System = None,
    as_json: AsJson = False,
) -> int:
    """Verify that an upload in the bucket is complete and undamaged.

    Without --deep, only the manifest is downloaded from S3, and compared with the metadata that the store reports; in a
    directory, every object is read. Without an ID, this machine's newest upload must exist, too. Exits with 0 (intact),
    1 (damaged, not found, or the store cannot be read) or 2 (usage error).
    """
    if everything and upload is not None:
        raise SettingsError(f"both --all and {upload} were given", hint="give only one of them")
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    system_id = await system_of(settings, system)
    async with (
        open_archive(settings, system_id) as archive,
        systems_as_hint(archive, system),
        absence_recorded(settings, archive, system),
    ):
        if system_id == identity.system_id:
            with suppress(LedgerDamaged):  # verifying needs only the target, not the ledger
                async with home.ownership(identity, archive.store) as ownership, archive.stall_limit():
                    await ownership.check_mounted()
        uploads, missing = await _uploads(settings, archive, system, upload, everything=everything)
        async with _verifier(home, archive, deep=deep) as verifier:
            found = await _verify(verifier, uploads, deep=deep)
    found = [one for one in found if not (one.is_missing and everything)]  # deleted meanwhile: not damage
    events = [one.event(identity, home.clock) for one in found]
    found = [*([missing_upload(missing)] if missing else []), *found]
    whole = all(one.whole for one in found)
    if as_json:
        document = {"system_id": system_id, "whole": whole, "uploads": [_document(one) for one in found]}
        typer.echo(json.dumps(document, indent=2))
    else:
        for one in found:
            for line in _lines(one, settings.directory):
                typer.echo(printable(line), err=not one.whole)
        if missing:
            typer.echo(missing_text(missing), err=True)
    if system_id == identity.system_id:
        await record_events(home, identity, *events)
    return 0 if whole else 1


async def _uploads(
    settings: Settings, archive: Catalog, system: str | None, upload: str | None, *, everything: bool
) -> tuple[Sequence[str], str | None]:
    """Return the uploads to verify, and the newest upload in the ledger if it is missing."""
    missing = None
    try:
        uploads = await archive.ids() if everything else []
        uploads = uploads or [await archive.resolve(LATEST if upload is None else upload)]
    except NoSuchObject:
        if upload is not None or (missing := await record_missing(settings, archive, system)) is None:
            raise
        return [], missing
    if upload is None:
        missing = await record_missing(settings, archive, system, uploads)
    return uploads, missing


@asynccontextmanager
async def _verifier(home: Home, archive: Catalog, *, deep: bool) -> AsyncIterator[Verifier]:
    if not deep:
        yield Verifier(archive, home.clock)
        return
    async with open_deep_verifier(archive, home.state, home.clock) as verifier:
        yield verifier


async def _verify(verifier: Verifier, uploads: Sequence[str], *, deep: bool) -> list[VerifyResult]:
    found = []
    async with progress_bar(of_bytes=deep) as bar:
        for count, upload in enumerate(uploads):
            if deep:
                phase = f"verifying {upload}" + (f" ({count + 1} of {len(uploads)})" if len(uploads) > 1 else "")
                bar.phase(phase, None)
                found.append(await verifier.deep(upload, bar.moved, partial(bar.phase, phase)))
            else:
                bar.show("verifying", count, len(uploads))
                found.append(await verifier.shallow(upload))
    return found


def _lines(found: VerifyResult, directory: Path | None) -> Iterator[str]:
    how = "by the store's checksums" if directory is None else "by digest"
    compared = f"compared with the manifest {how}"
    checked = "downloaded and read" if found.deep else compared
    if found.whole:
        state = "intact as uploaded" if found.unverified else "intact"
        yield f"{found.upload_id}: {state}, {found.objects} objects {checked}, {found.duration_seconds:.1f} s"
    elif found.is_missing:
        yield f"{found.upload_id}: MISSING"
        return
    else:
        yield f"{found.upload_id}: DAMAGED"
    for name, reason in sorted(found.problems.items()):
        yield f"  {name}: {reason}"
    for database, reason in found.unverified.items():
        if database not in found.notes:  # that line says more
            yield f"  {database}: the copy could not be verified when it was uploaded: {reason}"
    for database, reason in sorted(found.notes.items()):
        yield f"  {database}: its checksum matches, but it was not read: {reason}"
    for database, note in (found.manifest.storage_notes() if found.manifest else {}).items():
        yield f"  {database}: {note}"


def _document(found: VerifyResult) -> dict[str, object]:
    return {
        "upload_id": found.upload_id,
        "whole": found.whole,
        "deep": found.deep,
        "objects": found.objects,
        "problems": dict(found.problems),
        "notes": dict(found.notes),
        "unverified": dict(found.unverified),
        "duration_seconds": found.duration_seconds,
    }
