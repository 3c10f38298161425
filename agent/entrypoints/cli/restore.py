"""`restore`: write the databases of an upload to a directory."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from agent.application.archive.catalog import LATEST, Catalog, time_of
from agent.application.archive.restore import RestoreRequest
from agent.bootstrap.archive import open_archive
from agent.bootstrap.restore import check_destination, finish_restores, open_restore
from agent.domain.databases import storage_note
from agent.domain.errors import NoSuchObject, SettingsError
from agent.domain.manifest import Manifest
from agent.domain.plain_text import printable
from agent.domain.restore_plan import Restored, RestoredDatabase, restorable
from agent.entrypoints.archive import (
    absence_recorded,
    check_mounted,
    missing_text,
    record_missing,
    system_of,
    systems_as_hint,
)
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson, System
from agent.entrypoints.formatting import human_bytes, local_time
from agent.entrypoints.progress_line import progress_bar
from agent.settings import Settings

app = CommandGroup()


def _directory(text: str) -> Path:
    """Refuse an empty text: it comes from a variable that is not set, and does not mean the working directory."""
    if not text:
        raise typer.BadParameter("the name of the directory is empty")
    return Path(text)


@app.command()
async def restore(
    settings: Settings,
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", parser=_directory, help="Directory to restore to; created if it does not exist."
        ),
    ],
    upload: Annotated[
        str | None,
        typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix. Default: latest."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="Restore the newest upload made until this time: '2026-11-20 18:00', RFC 3339, yesterday, "
            "'yesterday 18:00', or '2 hours ago'.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Restore only this database (for example reflection); may be repeated. Default: all.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Restore main file and WAL as two files instead of merging the WAL.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing files; they are renamed, with the time as a suffix.")
    ] = False,
    system: System = None,
    as_json: AsJson = False,
) -> int:
    """Restore and verify the databases of an upload; never replaces a database in use.

    To continue an interrupted restore, run the command again.
    """
    if upload is not None and at is not None:
        raise SettingsError("both an upload and --at were given", hint="give only one of them")
    moment = time_of(at, datetime.now(UTC)) if at is not None else None
    request = RestoreRequest(only=tuple(only or ()), raw=raw, force=force)
    await asyncio.to_thread(check_destination, settings, to)
    async with (
        open_archive(settings, await system_of(settings, system)) as archive,
        systems_as_hint(archive, system),
        absence_recorded(settings, archive, system),
    ):
        restored = await _restored(settings, archive, to, upload, moment, at, request, system)
    if as_json:
        typer.echo(json.dumps(restored.to_document(), indent=2))
    else:
        for line in _lines(restored):
            typer.echo(line)
    return 0


async def _restored(
    settings: Settings,
    archive: Catalog,
    to: Path,
    upload: str | None,
    moment: datetime | None,
    at: str | None,
    request: RestoreRequest,
    system: str | None,
) -> Restored:
    """Finish interrupted restores to the directory, then restore the upload unless it was one of them."""
    finished = {one.upload_id: one for one in await asyncio.to_thread(finish_restores, to)}
    try:
        if moment is not None:
            found = await archive.resolve_at(moment, at or "")
        else:
            found = await archive.resolve(LATEST if upload is None else upload)
            if upload in (None, LATEST) and (missing := await record_missing(settings, archive, system, [found])):
                typer.echo(f"{missing_text(missing)}: restoring the one before it", err=True)
        if found in finished and _satisfies(finished[found], await archive.manifest(found), request):
            return finished.pop(found)
    except NoSuchObject:
        await check_mounted(settings, archive, system)
        raise
    finally:
        for one in finished.values():
            names = ", ".join(database.database for database in one.databases)
            typer.echo(f"{one.upload_id}: an interrupted restore of {names} was finished, too", err=True)
    manifest = await archive.manifest(found)
    async with open_restore(to, archive) as restoring, progress_bar() as bar:
        return await restoring.restore(manifest, request, bar)


def _satisfies(done: Restored, manifest: Manifest, request: RestoreRequest) -> bool:
    """Return whether an interrupted restore, finished now, is the one requested."""
    restored = {one.database: one for one in done.databases}
    for wanted in restorable(manifest, only=request.only, raw=request.raw):
        one = restored.get(wanted.database)
        if one is None or (one.folded != wanted.folds and not one.warning):
            return False
    return True


def _lines(restored: Restored) -> Iterator[str]:
    uploaded = local_time(datetime.fromisoformat(restored.uploaded_at))
    yield f"restored {restored.upload_id}, uploaded {uploaded}, to {restored.to}"
    for database in restored.databases:
        yield from map(printable, _database_lines(database))
    yield f"{human_bytes(restored.downloaded_bytes)} downloaded in {restored.duration_seconds:.1f} s"


def _database_lines(restored: RestoredDatabase) -> Iterator[str]:
    rows = f", {sum(restored.rows.values()):,} rows" if restored.rows else ""
    folded = ", WAL merged into it" if restored.folded else ""
    yield f"  {' + '.join(restored.files)}: {human_bytes(restored.size)}{rows}{folded}"
    if restored.carried_from:
        age = timedelta(seconds=restored.carried_age_seconds)
        yield f"    carried over from {restored.carried_from}: {age} older than the upload"
    for name, aside in restored.set_aside.items():
        yield f"    the existing {name} was renamed to {aside}"
    if note := storage_note(restored.storage_version):
        yield f"    {note}"
    if restored.warning:
        yield f"    warning: {restored.warning}"
