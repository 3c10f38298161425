"""`restore`: an upload's databases as files again, and what came of it."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import typer

from agent.application.archive.catalog import LATEST, Catalog, time_of
from agent.application.archive.restore import RestoreRequest
from agent.bootstrap.archive import archive_of
from agent.bootstrap.home import Home
from agent.bootstrap.restore import check_destination, finish_restores, restoring_to
from agent.domain.databases import storage_note
from agent.domain.errors import NamingError, NoSuchObject, SettingsError
from agent.domain.manifest import Manifest
from agent.domain.naming import check_system_id
from agent.domain.plain_text import printable
from agent.domain.restore_plan import Restored, RestoredDatabase, restorable
from agent.entrypoints.cli.uploads import check_mounted
from agent.entrypoints.results import human_bytes, when
from agent.ports.restore import Reporter
from agent.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line."""

    to: Path
    which: str | None = None
    at: str | None = None
    only: tuple[str, ...] = ()
    raw: bool = False
    force: bool = False
    system: str | None = None
    as_json: bool = False


async def restore(settings: Settings, asked: Asked) -> int:
    """Restore and print what came of it. Returns 0. Raises RestoreError, StoreError, SettingsError."""
    if asked.which is not None and asked.at is not None:
        raise SettingsError("an upload and --at were given", hint="leave out the one or the other")
    at = time_of(asked.at) if asked.at is not None else None
    await asyncio.to_thread(check_destination, settings, asked.to)
    async with archive_of(settings, await _system(settings, asked.system)) as archive:
        finished = {one.upload_id: one for one in await asyncio.to_thread(finish_restores, asked.to)}
        done = None
        try:
            which = LATEST if asked.which is None else asked.which
            upload = await (archive.resolve_at(at) if at else archive.resolve(which))
            if upload in finished and _is_what_is_asked(finished[upload], await archive.manifest(upload), asked):
                done = finished.pop(upload)
        except NoSuchObject:
            await check_mounted(settings, archive, asked.system)
            raise
        finally:
            for one in finished.values():
                what = ", ".join(database.database for database in one.databases)
                typer.echo(f"{one.upload_id}: a restore of {what} that was interrupted is done now, too", err=True)
        if done is not None:
            _tell(done, as_json=asked.as_json)
            return 0
        _tell(await _restored(archive, upload, asked), as_json=asked.as_json)
    return 0


def _is_what_is_asked(done: Restored, manifest: Manifest, asked: Asked) -> bool:
    """Say whether a restore that was interrupted, and is done now, is the one that is asked for."""
    there = {one.database: one for one in done.databases}
    for wanted in restorable(manifest, only=asked.only, raw=asked.raw):
        one = there.get(wanted.database)
        if one is None or (one.folded != wanted.folds and not one.warning):
            return False
    return True


async def _restored(archive: Catalog, upload: str, asked: Asked) -> Restored:
    manifest = await archive.manifest(upload)
    wanted = RestoreRequest(only=asked.only, raw=asked.raw, force=asked.force)
    async with restoring_to(asked.to, archive) as restoring:
        with _progress_bar() as reporter:
            return await restoring.restore(manifest, wanted, reporter)


async def _system(settings: Settings, given: str | None) -> str:
    if given is not None:
        try:
            return check_system_id(given)
        except NamingError as error:
            raise SettingsError(f"--system: {error.message}", hint=error.hint) from error
    return (await asyncio.to_thread(Home.of(settings).prepare)).system_id


def _tell(restored: Restored, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(restored.to_document(), indent=2))
        return
    uploaded = when(datetime.fromisoformat(restored.uploaded_at))
    typer.echo(f"{restored.upload_id}, uploaded {uploaded}, is restored to {restored.to}")
    for database in restored.databases:
        for line in _lines(database):
            typer.echo(printable(line))
    typer.echo(f"{human_bytes(restored.downloaded_bytes)} downloaded in {restored.duration_seconds:.1f} s")


def _lines(found: RestoredDatabase) -> Iterator[str]:
    rows = f", {sum(found.rows.values()):,} rows" if found.rows else ""
    folded = ", in one file with what was in its WAL" if found.folded else ""
    yield f"  {' + '.join(found.files)}: {human_bytes(found.size)}{rows}{folded}"
    if found.carried_from:
        age = timedelta(seconds=found.carried_age_seconds)
        yield f"    carried over from {found.carried_from}: {age} older than the upload"
    for name, aside in found.set_aside.items():
        yield f"    {name} that was there is {aside} now"
    if note := storage_note(found.storage_version):
        yield f"    {note}"
    if found.warning:
        yield f"    warning: {found.warning}"


class _Silent:
    """A Reporter for where nobody looks."""

    def phase(self, name: str, total_bytes: int) -> None: ...

    def moved(self, count: int) -> None: ...


@contextmanager
def _progress_bar() -> Iterator[Reporter]:
    """Show progress on a terminal; none in a pipe."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console  # noqa: PLC0415 - only people need bars
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description:<9}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        class Shown:
            """A Reporter whose figures are the bar's."""

            task: TaskID | None = None

            def phase(self, name: str, total_bytes: int) -> None:
                self.task = bar.add_task(name, total=total_bytes)

            def moved(self, count: int) -> None:
                if self.task is not None:
                    bar.advance(self.task, count)

        yield Shown()
