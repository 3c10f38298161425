"""`prune`: delete the uploads that the rules of keeping let go, or say which those are."""

import asyncio
import json

import typer
from rich.table import Table

from agent.application.archive.prune import Pruned, PrunePlan, Pruner
from agent.application.archive.prune_loop import HELD_HINT
from agent.bootstrap.archive import prune_here
from agent.bootstrap.home import Home
from agent.domain.errors import NotPermitted
from agent.domain.plain_text import printable
from agent.domain.retention import KeepRules, r2_command, s3_rule
from agent.entrypoints.cli.archive_events import announce
from agent.entrypoints.cli.terminal import table_console
from agent.entrypoints.results import human_bytes
from agent.settings import Settings


async def prune_once(settings: Settings, rules: KeepRules, *, dry_run: bool, as_json: bool) -> int:
    """Prune and print what came of it. Returns 0, or 1 where not all of it could be deleted.

    Works without a running agent and beside one, which hears of it. Raises SettingsError, StateError, StoreError.
    """
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    machine = await asyncio.to_thread(home.machine)
    ledger = await home.read_ledger() if await home.has_ledger() else None
    try:
        async with prune_here(settings, identity, machine, rules, home.clock, ledger) as here:
            pruning, spared = here.pruning, here.spared
            plan = await pruning.plan(spared)
            held = Pruned(kept=len(plan.kept)) if plan.held else None
            pruned = None if dry_run else held or await pruning.carry_out(plan, spared)
    finally:
        if ledger is not None:
            await ledger.aclose()
    if pruned is not None and not (pruned.is_nothing and pruned.error is None):
        await announce(home, pruning.event(pruned, identity.agent_id))
    refused = pruned is not None and isinstance(pruned.error, NotPermitted)
    system_id, bucket = pruning.system_id, settings.cloud_bucket
    instead = {"s3": s3_rule(system_id, rules), "r2": r2_command(bucket, system_id, rules)}
    if as_json:
        document = _document(pruning, plan, pruned)
        typer.echo(json.dumps(document | ({"lifecycle": instead} if refused else {}), indent=2))
    elif pruned is None:
        _show(plan)
    else:
        _tell(pruned)
    if plan.held:
        typer.echo(f"akosha-agent: nothing is deleted: {printable(plan.held)} ({HELD_HINT})", err=True)
        return 1
    if pruned is None or pruned.error is None:
        return 0
    typer.echo(f"akosha-agent: {pruned.error}", err=True)
    if refused and not as_json:
        typer.echo(
            "or let the bucket delete old uploads, by days alone (docs/pruning.md says what that means):\n"
            f"  S3: aws s3api put-bucket-lifecycle-configuration --bucket {bucket}"
            f" --lifecycle-configuration '{instead['s3']}'\n"
            f"  R2: {instead['r2']}",
            err=True,
        )
    return 1


def _document(pruning: Pruner, plan: PrunePlan, pruned: Pruned | None) -> dict[str, object]:
    """Return the JSON: what is gone, or (of a dry run) would go."""
    going = [item for objects in plan.going.values() for item in objects]
    left = [item for objects in plan.leftovers.values() for item in objects]
    return {
        "dry_run": pruned is None,
        "system_id": pruning.system_id,
        "location": pruning.location,
        "deleted": list(plan.going if pruned is None else pruned.upload_ids),
        "kept": [{"upload_id": upload, "reasons": list(reasons)} for upload, reasons in plan.kept.items()],
        "objects": len(going) if pruned is None else pruned.objects,
        "bytes_freed": sum(item.size for item in going) if pruned is None else pruned.bytes_freed,
        "leftovers": len(left) if pruned is None else pruned.leftovers,
        "duration_seconds": None if pruned is None else pruned.duration_seconds,
        "error": str(pruned.error) if pruned and pruned.error else (plan.held or None),
        "notice": (pruned.unswept if pruned else "") or None,
    }


def _show(plan: PrunePlan) -> None:
    table = Table("upload", "size", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows = {upload: ("", f"stays: {', '.join(reasons)}") for upload, reasons in plan.kept.items()}
    rows |= {u: (human_bytes(sum(item.size for item in objects)), "would go") for u, objects in plan.going.items()}
    for upload, objects in plan.leftovers.items():
        rows[upload] = human_bytes(sum(item.size for item in objects)), "left over, without a manifest: would go"
    for upload in sorted(rows, reverse=True):
        table.add_row(upload, *rows[upload])
    table_console().print(table, soft_wrap=True)
    typer.echo(f"{len(plan.going)} of {_uploads(len(plan.kept) + len(plan.going))} would go; nothing was deleted")


def _tell(pruned: Pruned) -> None:
    if pruned.is_nothing:
        typer.echo(f"nothing was deleted; {_uploads(pruned.kept)} {'is' if pruned.kept == 1 else 'are'} kept")
    else:
        freed = f"{pruned.objects} objects, {human_bytes(pruned.bytes_freed)}"
        typer.echo(f"deleted {_uploads(len(pruned.upload_ids))} ({freed}); {pruned.kept} kept")
    if pruned.leftovers:
        typer.echo(f"deleted {pruned.leftovers} leftovers of uploads that were never whole")
    if pruned.unswept:
        typer.echo(f"unfinished uploads in parts could not be looked for: {pruned.unswept}", err=True)


def _uploads(count: int) -> str:
    return "1 upload" if count == 1 else f"{count} uploads"
