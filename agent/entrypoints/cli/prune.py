"""`prune`: delete the uploads that no retention rule keeps, or print them."""

import asyncio
import json
from dataclasses import replace
from typing import Annotated

import typer

from agent.application.archive.prune import Pruned, PrunePlan, Pruner
from agent.application.archive.prune_loop import HELD_HINT
from agent.bootstrap.archive import open_prune
from agent.bootstrap.home import Home
from agent.domain.errors import NotPermitted
from agent.domain.plain_text import printable
from agent.domain.retention import KeepRules, r2_command, s3_rule
from agent.entrypoints.archive import record_events
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import columns, human_bytes
from agent.settings import Settings
from agent.settings.model import MAX_KEPT

app = CommandGroup()


def _keep_option(period: str, description: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--keep-{period}",
        metavar="N",
        min=0,
        max=MAX_KEPT,
        help=f"{description} Default: akosha_agent_keep_{period}.",
        show_default=False,
    )
    return option


@app.command()
async def prune(
    settings: Settings,
    keep_last: Annotated[int | None, _keep_option("last", "Keep the last N uploads.")] = None,
    keep_daily: Annotated[
        int | None, _keep_option("daily", "Keep the last upload of each of the last N days with uploads.")
    ] = None,
    keep_weekly: Annotated[
        int | None, _keep_option("weekly", "Keep the last upload of each of the last N weeks with uploads.")
    ] = None,
    keep_monthly: Annotated[
        int | None, _keep_option("monthly", "Keep the last upload of each of the last N months with uploads.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; print what would be deleted, and why the rest is kept.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Delete the old uploads of this system that no retention rule keeps; never the newest.

    The agent does this after each upload if akosha_agent_prune is true. Exits with 1 if not all could be deleted.
    """
    rules = KeepRules(
        last=settings.agent_keep_last if keep_last is None else keep_last,
        daily=settings.agent_keep_daily if keep_daily is None else keep_daily,
        weekly=settings.agent_keep_weekly if keep_weekly is None else keep_weekly,
        monthly=settings.agent_keep_monthly if keep_monthly is None else keep_monthly,
    )
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    machine = await asyncio.to_thread(home.machine)
    ledger = await home.read_ledger() if await home.has_ledger() else None
    try:
        async with open_prune(settings, identity, machine, rules, home.clock, ledger) as job:
            pruner = job.pruner
            plan = await pruner.plan(await job.spared(), always_verify=True)
            if dry_run:
                pruned = None
            elif plan.blocked:
                pruned = Pruned(kept=len(plan.kept))
            else:
                pruned = await pruner.carry_out(plan, await job.spared(), open_puts=await job.open_puts())
    finally:
        if ledger is not None:
            await ledger.aclose()
    if pruned is not None and plan.blocked:
        event = replace(pruner.event(pruned, identity.agent_id), error=plan.blocked, held=True)
        await record_events(home, identity, event)
    elif pruned is not None and not (pruned.is_empty and pruned.error is None):
        await record_events(home, identity, pruner.event(pruned, identity.agent_id))
    refused = pruned is not None and isinstance(pruned.error, NotPermitted)
    system_id, bucket = pruner.system_id, settings.cloud_bucket
    lifecycle = {"s3": s3_rule(system_id, rules), "r2": r2_command(bucket, system_id, rules)}
    if as_json:
        document = _document(pruner, plan, pruned)
        typer.echo(json.dumps(document | ({"lifecycle": lifecycle} if refused else {}), indent=2))
    elif pruned is None:
        _print_plan(plan, pruner)
    else:
        _print_result(pruned, pruner)
    if plan.blocked:
        typer.echo(f"akosha-agent: nothing was deleted: {printable(plan.blocked)} ({HELD_HINT})", err=True)
        return 1
    if pruned is None or pruned.error is None:
        return 0
    typer.echo(f"akosha-agent: {pruned.error}", err=True)
    if refused and not as_json:
        typer.echo(
            "or let the bucket delete old uploads by age alone (docs/guides/pruning.md explains the difference):\n"
            f"  S3: aws s3api put-bucket-lifecycle-configuration --bucket {bucket}"
            f" --lifecycle-configuration '{lifecycle['s3']}'\n"
            f"  R2: {lifecycle['r2']}",
            err=True,
        )
    return 1


def _document(pruner: Pruner, plan: PrunePlan, pruned: Pruned | None) -> dict[str, object]:
    """Return the JSON document: what was deleted, or for a dry run what would be deleted."""
    doomed = [item for objects in plan.to_delete.values() for item in objects]
    leftovers = [item for objects in plan.leftovers.values() for item in objects]
    return {
        "dry_run": pruned is None,
        "system_id": pruner.system_id,
        "location": pruner.location,
        "deleted": list(plan.to_delete if pruned is None else pruned.upload_ids),
        "kept": [{"upload_id": upload, "reasons": list(reasons)} for upload, reasons in plan.kept.items()],
        "objects": len(doomed) if pruned is None else pruned.objects,
        "bytes_freed": sum(item.size for item in doomed) if pruned is None else pruned.bytes_freed,
        "leftovers": len(leftovers) if pruned is None else pruned.leftovers,
        "duration_seconds": None if pruned is None else pruned.duration_seconds,
        "error": str(pruned.error) if pruned and pruned.error else (plan.blocked or None),
        "notice": (pruned.unswept if pruned else "") or None,
    }


def _print_plan(plan: PrunePlan, pruner: Pruner) -> None:
    rows = {upload: ("", "keep", ", ".join(map(_reason, reasons))) for upload, reasons in plan.kept.items()}
    for doomed, reason in ((plan.to_delete, "no rule keeps it"), (plan.leftovers, "left over, without a manifest")):
        rows |= {u: (human_bytes(sum(item.size for item in found)), "delete", reason) for u, found in doomed.items()}
    if not rows:
        typer.echo(f"there are no uploads of {pruner.system_id} in {printable(pruner.location)}")
        return
    for line in columns(
        [("upload", "freed", "action", "reason"), *((u, *rows[u]) for u in sorted(rows, reverse=True))]
    ):
        typer.echo(printable(line))
    total = _uploads(len(plan.kept) + len(plan.to_delete))
    typer.echo(f"dry run: {len(plan.to_delete)} of {total} would be deleted; nothing was deleted")


def _reason(reason: str) -> str:
    """Return a reason with the setting of its rule: `keep_last` for `last`, `keep_daily 2026-11-21`."""
    return f"keep_{reason}" if reason.partition(" ")[0] in ("last", "daily", "weekly", "monthly") else reason


def _print_result(pruned: Pruned, pruner: Pruner) -> None:
    if pruned.is_empty and not pruned.kept:
        typer.echo(f"there are no uploads of {pruner.system_id} in {printable(pruner.location)}")
    elif pruned.is_empty:
        typer.echo(f"nothing was deleted; {_uploads(pruned.kept)} {'is' if pruned.kept == 1 else 'are'} kept")
    else:
        freed = f"{pruned.objects} objects, {human_bytes(pruned.bytes_freed)}"
        typer.echo(f"deleted {_uploads(len(pruned.upload_ids))} ({freed}); {pruned.kept} kept")
    if pruned.leftovers:
        typer.echo(f"deleted {pruned.leftovers} objects left over from unfinished uploads")
    if pruned.unswept:
        typer.echo(f"unfinished multipart uploads could not be listed: {pruned.unswept}", err=True)


def _uploads(count: int) -> str:
    return "1 upload" if count == 1 else f"{count} uploads"
