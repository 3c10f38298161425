"""`verify`: are uploads whole in the bucket?"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

from agent.application.archive.catalog import LATEST, Catalog
from agent.application.archive.verify import Found, Verifier
from agent.bootstrap.archive import archive_of, verifying_deep
from agent.bootstrap.home import Home
from agent.domain.errors import LedgerDamaged, SettingsError
from agent.domain.plain_text import printable
from agent.entrypoints.cli.archive_events import announce
from agent.entrypoints.cli.uploads import system_of
from agent.ports import Progress as Moved, untold
from agent.settings import Settings


async def verify(
    settings: Settings, which: str | None, *, everything: bool, deep: bool, system: str | None, as_json: bool
) -> int:
    """Look at one upload (None: the latest), or at `everything`; print what is found. Returns 0 (all whole) or 1.

    What is found of this machine's own uploads is told as events, as well. Raises StoreError where the store cannot be
    asked, SettingsError, StateError.
    """
    if everything and which is not None:
        raise SettingsError("--all looks at every upload", hint=f"leave out either --all or {which}")
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    system_id = await system_of(home, system)
    async with archive_of(settings, system_id) as archive:
        if system_id == identity.system_id:
            with suppress(LedgerDamaged):  # whether uploads are whole is asked of the target, not of the ledger
                async with home.ownership(identity, archive.store) as ownership, archive.moving():
                    await ownership.check_mounted()
        uploads = await archive.ids() if everything else []
        uploads = uploads or [await archive.resolve(LATEST if which is None else which)]
        async with _looking(home, archive, deep=deep) as verification:
            found = await _look(verification, uploads, deep=deep)
    found = [one for one in found if not (one.gone and everything)]  # deleted meanwhile: that is nobody's damage
    whole = all(one.whole for one in found)
    if as_json:
        document = {"system_id": system_id, "whole": whole, "uploads": [_document(one) for one in found]}
        typer.echo(json.dumps(document, indent=2))
    else:
        for one in found:
            for line in _lines(one):
                typer.echo(printable(line), err=not one.whole)
    if system_id == identity.system_id:
        await announce(home, *(one.event(identity, home.clock) for one in found))
    return 0 if whole else 1


@asynccontextmanager
async def _looking(home: Home, archive: Catalog, *, deep: bool) -> AsyncIterator[Verifier]:
    if not deep:
        yield Verifier(archive, home.clock)
        return
    async with verifying_deep(archive, home.state, home.clock) as verification:
        yield verification


async def _look(verification: Verifier, uploads: Sequence[str], *, deep: bool) -> list[Found]:
    found = []
    with _bar(uploads, deep=deep) as bar:
        for upload in uploads:
            begun, moved = bar.next(upload)
            found.append(await (verification.deep(upload, moved, begun) if deep else verification.shallow(upload)))
    return found


class _Bar:
    """How far it is: of a deep look by the bytes of each upload, of shallow ones by uploads. In a pipe, nothing."""

    def __init__(self, progress: Progress | None, count: int, *, deep: bool) -> None:
        self._progress, self._deep = progress, deep
        self._task = None if progress is None else progress.add_task("looking", total=None if deep else count)
        self._begun = 0

    def next(self, upload: str) -> tuple[Moved, Moved]:
        """An upload's turn: return who hears how many bytes there are to download, and who hears as they come."""
        progress, task = self._progress, self._task
        if progress is None or task is None:
            return untold, untold
        if not self._deep:
            progress.update(task, description=upload, completed=self._begun)
            self._begun += 1
            return untold, untold
        progress.update(task, description=upload, completed=0)
        return (
            lambda total: progress.update(task, total=total),
            lambda count: progress.update(task, advance=count),
        )


@contextmanager
def _bar(uploads: Sequence[str], *, deep: bool) -> Iterator[_Bar]:
    if not sys.stderr.isatty():
        yield _Bar(None, len(uploads), deep=deep)
        return
    told = (DownloadColumn(), TransferSpeedColumn()) if deep else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *told)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, len(uploads), deep=deep)


def _lines(found: Found) -> Iterator[str]:
    """Say what was found of an upload, in lines for a person."""
    how = "downloaded and read through" if found.deep else "by what the store says of them"
    if found.whole:
        yield f"{found.upload_id}: whole, {found.objects} objects {how}, {found.duration_seconds:.1f} s"
    else:
        yield f"{found.upload_id}: DAMAGED"
    for name, why in sorted(found.problems.items()):
        yield f"  {name}: {why}"
    for database, why in sorted(found.notes.items()):
        yield f"  {database}: its bytes are those that were uploaded; {why}"
    for database, note in (found.manifest.storage_notes() if found.manifest else {}).items():
        yield f"  {database}: {note}"


def _document(found: Found) -> dict[str, object]:
    return {
        "upload_id": found.upload_id,
        "whole": found.whole,
        "deep": found.deep,
        "objects": found.objects,
        "problems": dict(found.problems),
        "notes": dict(found.notes),
        "duration_seconds": found.duration_seconds,
    }
