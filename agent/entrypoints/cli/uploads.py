"""`uploads`: what can be restored, the newest first; and everything about one."""

import asyncio
import json
from collections.abc import Mapping

import typer
from rich.table import Table

from agent.application.archive.catalog import MANIFESTS, Catalog, CatalogEntry, CatalogListing
from agent.bootstrap.archive import archive_of
from agent.bootstrap.home import Home
from agent.domain.errors import NamingError, NoSuchObject, SettingsError
from agent.domain.manifest import Manifest
from agent.domain.naming import check_system_id
from agent.entrypoints.cli.terminal import table_console
from agent.entrypoints.results import human_bytes, when
from agent.settings import Settings


async def system_of(home: Home, system: str | None) -> str:
    """Return the system that is meant: the one named, or this machine's. Raises SettingsError, StateError."""
    if system is None:
        return (await asyncio.to_thread(home.prepare)).system_id
    try:
        return check_system_id(system)
    except NamingError as error:
        raise SettingsError(f"--system: {error.message}", hint=error.hint) from error


async def check_mounted(settings: Settings, archive: Catalog, system: str | None) -> None:
    """Raise NotOwner where nothing is found in this machine's own directory because its disk is not mounted.

    `system` is what `--system` names: another system's uploads say nothing of a disk here. Raises StateError.
    """
    if system is None:
        home = Home.of(settings)
        async with home.ownership(await asyncio.to_thread(home.prepare), archive.store) as ownership:
            await ownership.check_mounted()


async def list_uploads(settings: Settings, *, system: str | None, everything: bool, as_json: bool) -> int:
    """Print the uploads of a system; `everything`: what the manifests of the old ones say, too. Returns 0.

    Raises NotOwner where there are none and the disk is not mounted.
    """
    system_id = await system_of(Home.of(settings), system)
    async with archive_of(settings, system_id) as archive:
        listing = await archive.listing(manifests=None if everything else MANIFESTS)
        if not listing.uploads:
            await check_mounted(settings, archive, system)
        where = archive.store.location
    if as_json:
        typer.echo(json.dumps(listing_document(listing, system_id, where), indent=2))
    else:
        _print_list(listing, system_id, where)
    return 0


async def show_upload(settings: Settings, which: str, *, system: str | None, as_json: bool) -> int:
    """Print everything about one upload. Returns 0. Raises NoSuchObject where it is not there."""
    system_id = await system_of(Home.of(settings), system)
    async with archive_of(settings, system_id) as archive:
        try:
            listed = await _one(archive, which)
        except NoSuchObject:
            await check_mounted(settings, archive, system)
            raise
    if as_json:
        typer.echo(json.dumps(upload_document(listed) | _insides(listed.manifest), indent=2))
    else:
        _print_one(listed)
    return 0


async def _one(archive: Catalog, which: str) -> CatalogEntry:
    return await archive.show(await archive.resolve(which))


def listing_document(listing: CatalogListing, system_id: str, where: str) -> dict[str, object]:
    """Return a listing as programs get it."""
    return {
        "system_id": system_id,
        "location": where,
        "uploads": [upload_document(listed) for listed in listing.uploads],
        "unfinished": list(listing.unfinished),
    }


def upload_document(listed: CatalogEntry) -> dict[str, object]:
    """Return an upload as programs get it; null: its manifest was not read, or cannot be, as `problems` say."""
    manifest = listed.manifest
    return {
        "upload_id": listed.upload_id,
        "time": listed.at.isoformat(),
        "stored_bytes": listed.stored_bytes,
        "raw_bytes": listed.raw_bytes,
        "rows": listed.rows,
        "databases": sorted({part.database for part in manifest.parts}) if manifest else None,
        "verified": all(part.verified for part in manifest.parts) if manifest else None,
        "carried": _carried(manifest) if manifest else None,
        "triggered_by": manifest.triggered_by if manifest else None,
        "problems": dict(listed.problems),
    }


def _insides(manifest: Manifest | None) -> dict[str, object]:
    if manifest is None:
        return {}
    document: Mapping[str, object] = json.loads(manifest.encode())
    wanted = ("uploaded_at", "agent_id", "agent_version", "request_id", "time_zone", "parts", "memories")
    return {
        **{name: document[name] for name in (*wanted, "without_memories", "incomplete")},
        "rows_by_table": {name: dict(tables) for name, tables in manifest.rows.items()},
    }


def _print_list(listing: CatalogListing, system_id: str, where: str) -> None:
    console = table_console()
    if not listing.uploads:
        console.print(f"there is no upload of {system_id} in {where}")
    else:
        console.print(_table(listing))
    if unread := sum(1 for listed in listing.uploads if listed.manifest is None and not listed.problems):
        console.print(f"{unread} older ones by what the bucket lists alone: --all reads every manifest")
    if listing.unfinished:
        console.print(f"{len(listing.unfinished)} unfinished, the newest {max(listing.unfinished)}")


def _table(listing: CatalogListing) -> Table:
    """Return the table of uploads. What would be empty all the way down has no column: lines are to fit."""
    carried = {listed.upload_id: _carried(listed.manifest) if listed.manifest else [] for listed in listing.uploads}
    damaged = any(listed.problems for listed in listing.uploads)
    table = Table(box=None, pad_edge=False)
    table.add_column("upload", overflow="fold")
    table.add_column("time", no_wrap=True)
    for title in ("stored", "raw", "rows"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("verified", *(("carried over",) if any(carried.values()) else ()), *(("",) if damaged else ())):
        table.add_column(title, overflow="fold")
    for listed in listing.uploads:
        table.add_row(
            listed.upload_id,
            when(listed.at)[: len("2026-11-21 18:00")],
            human_bytes(listed.stored_bytes),
            "" if listed.raw_bytes is None else human_bytes(listed.raw_bytes),
            "" if listed.rows is None else f"{listed.rows:,}",
            _verified(listed.manifest),
            *((", ".join(carried[listed.upload_id]),) if any(carried.values()) else ()),
            *((wrong(listed.problems),) if damaged else ()),
        )
    return table


def _print_one(listed: CatalogEntry) -> None:
    console, manifest = table_console(), listed.manifest
    console.print(f"upload      {listed.upload_id}  ({when(listed.at)})")
    console.print(f"stored      {human_bytes(listed.stored_bytes)} in {len(listed.sizes)} objects")
    for name, why in sorted(listed.problems.items()):
        console.print(f"DAMAGED     {name}: {why}")
    if manifest is None:
        return
    console.print(f"raw         {human_bytes(listed.raw_bytes or 0)}")
    console.print(f"made        {when(manifest.uploaded_at)} by agent {manifest.agent_id} {manifest.agent_version}")
    console.print(f"because of  {manifest.triggered_by}")
    for name, why in sorted(manifest.incomplete.items()):
        console.print(f"incomplete  {name}: {why}")
    if manifest.memories:
        held = manifest.memories
        console.print(f"memories    {held.count:,} in {human_bytes(held.size)}")
        for name, base in sorted(held.bases.items()):
            console.print(f"  {name}: {f'new or changed since {base}' if base else 'all of them'}")
    for name, why in sorted(manifest.without_memories.items()):
        console.print(f"  {name}: not among the memories: {why}")
    table = Table("file", box=None, padding=(0, 2, 0, 0))
    for title in ("raw", "stored"):
        table.add_column(title, justify="right")
    for title in ("origin", "verified", "sha256"):
        table.add_column(title)
    for part in manifest.parts:
        origin = f"carried from {part.carried_from}" if part.origin == "carried" else part.origin
        checked = "yes" if part.verified else f"no: {part.unverified_reason}"
        row = (part.name, human_bytes(part.raw_size), human_bytes(part.stored_size), origin, checked, part.sha256[:12])
        table.add_row(*row)
    console.print(table)
    for database, note in manifest.storage_notes().items():
        console.print(f"{database}: {note}")
    for database, tables in sorted(manifest.rows.items()):
        told = ", ".join(f"{table} {count:,}" for table, count in sorted(tables.items()))
        console.print(f"{database}: {told or 'no tables'}")


def wrong(problems: Mapping[str, str]) -> str:
    """Return what is wrong with an upload in a line, "" for nothing."""
    if not problems:
        return ""
    name, why = min(problems.items())
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"DAMAGED: {name}: {why}{more}"


def _verified(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    unverified = sorted({part.database for part in manifest.parts if not part.verified})
    return f"all but {', '.join(unverified)}" if unverified else "yes"


def _carried(manifest: Manifest) -> list[str]:
    """Return the databases of which an earlier upload's state was taken over."""
    return sorted({part.database for part in manifest.parts if part.origin == "carried"})
