"""`uploads`: what can be restored, the newest first; and everything about one."""

import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table

from agent.application.archive.catalog import MANIFESTS, CatalogEntry, CatalogListing
from agent.bootstrap.archive import open_archive
from agent.domain.errors import NoSuchObject
from agent.domain.manifest import Manifest
from agent.entrypoints.cli.archive import check_mounted, system_of
from agent.entrypoints.cli.command import CommandGroup, Options
from agent.entrypoints.cli.options import AsJson, System
from agent.entrypoints.cli.terminal import table_console
from agent.entrypoints.formatting import human_bytes, local_time
from agent.entrypoints.shutdown import run_to_end
from agent.settings import Settings

Everything = Annotated[bool, typer.Option("--all", help="Read the manifests of old ones, too: a request each.")]

app = CommandGroup(help="Show the uploads there are, the newest first; or everything about one.")


@app.callback(invoke_without_command=True)
def _list_by_default(
    context: typer.Context,
    options: Options,
    everything: Everything = False,
    system: System = None,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand is None:
        listing = list_uploads(options.load().settings, everything=everything, system=system, as_json=as_json)
        raise typer.Exit(run_to_end(listing))
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            # The subcommand would not get it, and show this system's uploads in place of another's.
            context.fail(f"{option.opts[0]} goes behind {context.invoked_subcommand}")


@app.command(name="list")
async def list_uploads(
    settings: Settings, everything: Everything = False, system: System = None, as_json: AsJson = False
) -> int:
    """Show the uploads there are, the newest first."""
    system_id = await system_of(settings, system)
    async with open_archive(settings, system_id) as archive:
        listing = await archive.listing(manifests=None if everything else MANIFESTS)
        if not listing.uploads:
            await check_mounted(settings, archive, system)
        location = archive.store.location
    if as_json:
        typer.echo(json.dumps(listing_document(listing, system_id, location), indent=2))
    else:
        _print_list(listing, system_id, location)
    return 0


@app.command()
async def show(
    settings: Settings,
    upload: Annotated[str, typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix.")],
    system: System = None,
    as_json: AsJson = False,
) -> int:
    """Show one upload: its files, its memories, what is missing in it."""
    async with open_archive(settings, await system_of(settings, system)) as archive:
        try:
            entry = await archive.show(await archive.resolve(upload))
        except NoSuchObject:
            await check_mounted(settings, archive, system)
            raise
    if as_json:
        typer.echo(json.dumps(upload_document(entry) | _manifest_document(entry.manifest), indent=2))
    else:
        _print_one(entry)
    return 0


def listing_document(listing: CatalogListing, system_id: str, location: str) -> dict[str, object]:
    """Return a listing as programs get it."""
    return {
        "system_id": system_id,
        "location": location,
        "uploads": [upload_document(entry) for entry in listing.uploads],
        "unfinished": list(listing.unfinished),
    }


def upload_document(entry: CatalogEntry) -> dict[str, object]:
    """Return an upload as programs get it; null: its manifest was not read, or cannot be, as `problems` say."""
    manifest = entry.manifest
    return {
        "upload_id": entry.upload_id,
        "time": entry.at.isoformat(),
        "stored_bytes": entry.stored_bytes,
        "raw_bytes": entry.raw_bytes,
        "rows": entry.rows,
        "databases": sorted({part.database for part in manifest.parts}) if manifest else None,
        "verified": all(part.verified for part in manifest.parts) if manifest else None,
        "carried": _carried(manifest) if manifest else None,
        "triggered_by": manifest.triggered_by if manifest else None,
        "problems": dict(entry.problems),
    }


def _manifest_document(manifest: Manifest | None) -> dict[str, object]:
    if manifest is None:
        return {}
    document: Mapping[str, object] = json.loads(manifest.encode())
    wanted = ("uploaded_at", "agent_id", "agent_version", "request_id", "time_zone", "parts", "memories")
    return {
        **{name: document[name] for name in (*wanted, "without_memories", "incomplete")},
        "rows_by_table": {name: dict(tables) for name, tables in manifest.rows.items()},
    }


def _print_list(listing: CatalogListing, system_id: str, location: str) -> None:
    console = table_console()
    if not listing.uploads:
        console.print(f"there is no upload of {system_id} in {location}")
    else:
        console.print(_table(listing))
    if unread := sum(1 for entry in listing.uploads if entry.manifest is None and not entry.problems):
        console.print(f"{unread} older ones by what the bucket lists alone: --all reads every manifest")
    if listing.unfinished:
        console.print(f"{len(listing.unfinished)} unfinished, the newest {max(listing.unfinished)}")


def _table(listing: CatalogListing) -> Table:
    """Return the table of uploads. What would be empty all the way down has no column: lines are to fit."""
    carried = {entry.upload_id: _carried(entry.manifest) if entry.manifest else [] for entry in listing.uploads}
    damaged = any(entry.problems for entry in listing.uploads)
    table = Table(box=None, pad_edge=False)
    table.add_column("upload", overflow="fold")
    table.add_column("time", no_wrap=True)
    for title in ("stored", "raw", "rows"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("verified", *(("carried over",) if any(carried.values()) else ()), *(("",) if damaged else ())):
        table.add_column(title, overflow="fold")
    for entry in listing.uploads:
        table.add_row(
            entry.upload_id,
            local_time(entry.at)[: len("2026-11-21 18:00")],
            human_bytes(entry.stored_bytes),
            "" if entry.raw_bytes is None else human_bytes(entry.raw_bytes),
            "" if entry.rows is None else f"{entry.rows:,}",
            _verified(entry.manifest),
            *((", ".join(carried[entry.upload_id]),) if any(carried.values()) else ()),
            *((wrong(entry.problems),) if damaged else ()),
        )
    return table


def _print_one(entry: CatalogEntry) -> None:
    console, manifest = table_console(), entry.manifest
    console.print(f"upload      {entry.upload_id}  ({local_time(entry.at)})")
    console.print(f"stored      {human_bytes(entry.stored_bytes)} in {len(entry.sizes)} objects")
    for name, reason in sorted(entry.problems.items()):
        console.print(f"DAMAGED     {name}: {reason}")
    if manifest is None:
        return
    console.print(f"raw         {human_bytes(entry.raw_bytes or 0)}")
    console.print(
        f"made        {local_time(manifest.uploaded_at)} by agent {manifest.agent_id} {manifest.agent_version}"
    )
    console.print(f"because of  {manifest.triggered_by}")
    for name, reason in sorted(manifest.incomplete.items()):
        console.print(f"incomplete  {name}: {reason}")
    if manifest.memories:
        held = manifest.memories
        console.print(f"memories    {held.count:,} in {human_bytes(held.size)}")
        for name, base in sorted(held.bases.items()):
            console.print(f"  {name}: {f'new or changed since {base}' if base else 'all of them'}")
    for name, reason in sorted(manifest.without_memories.items()):
        console.print(f"  {name}: not among the memories: {reason}")
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
        rows = ", ".join(f"{table} {count:,}" for table, count in sorted(tables.items()))
        console.print(f"{database}: {rows or 'no tables'}")


def wrong(problems: Mapping[str, str]) -> str:
    """Return what is wrong with an upload in a line, "" for nothing."""
    if not problems:
        return ""
    name, reason = min(problems.items())
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"DAMAGED: {name}: {reason}{more}"


def _verified(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    unverified = sorted({part.database for part in manifest.parts if not part.verified})
    return f"all but {', '.join(unverified)}" if unverified else "yes"


def _carried(manifest: Manifest) -> list[str]:
    """Return the databases of which an earlier upload's state was taken over."""
    return sorted({part.database for part in manifest.parts if part.origin == "carried"})
