"""`uploads`: list the uploads that can be restored, newest first; or show one in detail."""

import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from agent.application.archive.catalog import MANIFESTS, CatalogEntry, CatalogListing, object_name
from agent.bootstrap.archive import open_archive
from agent.domain.errors import NoSuchObject
from agent.domain.manifest import Manifest
from agent.entrypoints.archive import (
    absence_recorded,
    carried_databases,
    check_mounted,
    missing_text,
    record_missing,
    system_of,
    systems_as_hint,
    upload_document,
)
from agent.entrypoints.cli.command import CommandGroup, Options
from agent.entrypoints.cli.options import AsJson, System
from agent.entrypoints.cli.terminal import print_table, table_console
from agent.entrypoints.formatting import human_bytes, local_time
from agent.entrypoints.shutdown import run_to_end
from agent.settings import Settings

Everything = Annotated[bool, typer.Option("--all", help="Read the manifests of old uploads, too (one request each).")]

app = CommandGroup(help="List the uploads in the bucket, newest first; or show one in detail.")


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
            # The subcommand does not get the option, and would show this system's uploads instead of another's.
            context.fail(f"{option.opts[0]} must follow {context.invoked_subcommand}")


@app.command(name="list")
async def list_uploads(
    settings: Settings, everything: Everything = False, system: System = None, as_json: AsJson = False
) -> int:
    """List the uploads in the bucket, newest first."""
    system_id = await system_of(settings, system)
    async with open_archive(settings, system_id) as archive, absence_recorded(settings, archive, system):
        listing = await archive.listing(manifests=None if everything else MANIFESTS)
        if not listing.uploads:
            await check_mounted(settings, archive, system)
        missing = await record_missing(settings, archive, system, {entry.upload_id for entry in listing.uploads})
        location = archive.store.location
    if as_json:
        typer.echo(json.dumps(listing_document(listing, system_id, location), indent=2))
    else:
        _print_list(listing, system_id, location)
    if missing:
        typer.echo(missing_text(missing), err=True)
    return 0


@app.command()
async def show(
    settings: Settings,
    upload: Annotated[str, typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix.")],
    system: System = None,
    as_json: AsJson = False,
) -> int:
    """Show one upload: its files, its memories, and what it lacks."""
    async with (
        open_archive(settings, await system_of(settings, system)) as archive,
        systems_as_hint(archive, system),
        absence_recorded(settings, archive, system),
    ):
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
    """Return the JSON document of a listing."""
    return {
        "system_id": system_id,
        "location": location,
        "uploads": [upload_document(entry) for entry in listing.uploads],
        "unfinished": list(listing.unfinished),
    }


def _manifest_document(manifest: Manifest | None) -> dict[str, object]:
    if manifest is None:
        return {}
    document: Mapping[str, object] = json.loads(manifest.encode())
    wanted = ("uploaded_at", "agent_id", "agent_version", "request_id", "time_zone", "parts", "memories")
    return {
        **{name: document[name] for name in (*wanted, "without_memories", "memories_omitted", "incomplete")},
        "rows_by_table": {name: dict(tables) for name, tables in manifest.rows.items()},
    }


def _print_list(listing: CatalogListing, system_id: str, location: str) -> None:
    console = table_console()
    if not listing.uploads:
        console.print(f"there are no uploads of {system_id} in {location}")
    else:
        print_table(_table(listing, console.width))
    if unread := sum(1 for entry in listing.uploads if entry.manifest is None and not entry.problems):
        console.print(f"the manifests of {unread} older uploads were not read (--all reads them)")
    if listing.unfinished:
        console.print(f"{len(listing.unfinished)} unfinished; the newest is {max(listing.unfinished)}")


def _table(listing: CatalogListing, width: int) -> Table:
    """Return the table of uploads. Columns that would be empty in every row are left out.

    So are, on a terminal that is too narrow, numbers and times: the ID, which `restore` needs, stays in one line.
    """
    carried = {
        entry.upload_id: carried_databases(entry.manifest) if entry.manifest else [] for entry in listing.uploads
    }
    damaged = any(entry.problems for entry in listing.uploads)
    table = Table(box=None, pad_edge=False)
    longest = max(len(entry.upload_id) for entry in listing.uploads)
    table.add_column("upload", no_wrap=longest <= width, overflow="fold")
    left = width - longest - len("  copy checked")
    optional = []
    for title, columns in (("time", 18), ("stored", 10), ("rows", 10), ("raw", 10)):
        left -= columns
        if left >= 0:
            optional.append(title)
    if "time" in optional:
        table.add_column("time", no_wrap=True)
    for title in (one for one in ("stored", "raw", "rows") if one in optional):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("copy checked", *(("carried over",) if any(carried.values()) else ()), *(("",) if damaged else ())):
        table.add_column(title, overflow="fold")
    for entry in listing.uploads:
        cells = {
            "time": local_time(entry.at)[: len("2026-11-21 18:00")],
            "stored": human_bytes(entry.stored_bytes),
            "raw": "" if entry.raw_bytes is None else human_bytes(entry.raw_bytes),
            "rows": "" if entry.rows is None else f"{entry.rows:,}",
        }
        table.add_row(
            entry.upload_id,
            *(cell for title, cell in cells.items() if title in optional),
            _copy_checked(entry.manifest),
            *((", ".join(carried[entry.upload_id]),) if any(carried.values()) else ()),
            *((damage_summary(entry.problems),) if damaged else ()),
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
        f"uploaded    {local_time(manifest.uploaded_at)} by agent {manifest.agent_id} {manifest.agent_version}"
    )
    console.print(f"reason      {manifest.triggered_by}")
    for name, reason in sorted(manifest.incomplete.items()):
        console.print(f"incomplete  {name}: {reason}")
    _print_memories(console, manifest)
    table = Table("file", box=None, padding=(0, 2, 0, 0))
    for title in ("raw", "stored"):
        table.add_column(title, justify="right")
    for title in ("origin", "copy checked", "sha256"):
        table.add_column(title)
    for part in manifest.parts:
        origin = f"carried from {part.carried_from}" if part.origin == "carried" else part.origin
        if patches := part.layers[1:]:
            origin += f", base and {len(patches)} patch{'es' if len(patches) > 1 else ''}"
        checked = "yes" if part.verified else f"no: {part.unverified_reason}"
        row = (part.name, human_bytes(part.raw_size), human_bytes(part.stored_size), origin, checked, part.sha256[:12])
        table.add_row(*row)
    print_table(table)
    for database, note in manifest.storage_notes().items():
        console.print(f"{database}: {note}", soft_wrap=True)
    for database, tables in sorted(manifest.rows.items()):
        rows = [f"{table} {count:,}" for table, count in sorted(tables.items()) if count]
        if empty := len(tables) - len(rows):
            rows.append(f"{empty} empty {'table' if empty == 1 else 'tables'}")
        console.print(f"{database}: {', '.join(rows) or 'no tables'}", soft_wrap=True)


def _print_memories(console: Console, manifest: Manifest) -> None:
    """Print which memories the upload has as memories.json, and which it has in the databases only."""
    if held := manifest.memories:
        console.print(f"memories    {held.count:,} in {human_bytes(held.raw_size)} ({object_name(held.key)})")
    elif manifest.memories_omitted or manifest.without_memories:
        console.print("memories    in the databases only")
    for name, base in sorted(held.bases.items() if held else ()):
        console.print(f"  {name}: {f'new or changed since {base}' if base else 'all'}")
    for name, reason in sorted(manifest.memories_omitted.items()):
        console.print(f"  {name}: left out: {reason}")
    for name, reason in sorted(manifest.without_memories.items()):
        console.print(f"  {name}: could not be read: {reason}")


def damage_summary(problems: Mapping[str, str]) -> str:
    """Return the damage of an upload in one line; "" if there is none."""
    if not problems:
        return ""
    name, reason = min(problems.items())
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"DAMAGED: {name}: {reason}{more}"


def _copy_checked(manifest: Manifest | None) -> str:
    """Return whether DuckDB opened and read the copies before the upload. The objects in the bucket are not checked."""
    if manifest is None:
        return ""
    unverified = sorted({part.database for part in manifest.parts if not part.verified})
    return f"all but {', '.join(unverified)}" if unverified else "yes"
