"""`memories`: how many memories each target has, and the memories that it lacks, with the reason."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from agent.application.monitoring.status import DELIVERED_TO_AKOSHA
from agent.application.sync.delivery_probe import PREFIX, ProbeState
from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain.delivery_state import Target
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.plain_text import shorten
from agent.domain.routing import HTTP
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.cli.terminal import print_table, table_console
from agent.entrypoints.formatting import local_time
from agent.ports import HeldMemory, MemoryCounts
from agent.settings import Settings

MOST_SHOWN = 1000
LONGEST_SHOWN = 200
"""Length limit of an ID or a reason in the table; JSON has the full text."""

app = CommandGroup()


@dataclass(frozen=True, slots=True)
class _Account:
    """One target's memories."""

    target: Target
    counts: MemoryCounts
    held: Sequence[HeldMemory]
    confirmed_at: datetime | None


@app.command()
async def memories(
    settings: Settings,
    failed: Annotated[bool, typer.Option("--failed", help="Show only memories that the server refused.")] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--send-again",
            help="Send all memories again with the next sync, if the server has lost them. Stop the agent first.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Show how many memories each target has received, and which are waiting or refused."""
    home = Home.of(settings)
    if again:
        return await _send_again(home)
    identity = await asyncio.to_thread(home.prepare)
    accounts = []
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            notes = await ledger.notes()
            for target in home.targets(identity).values():
                counts = await ledger.memories().counts(target)
                held = await ledger.memories().held(target, limit=MOST_SHOWN)
                shown = [one for one in held if one.state == "refused" or not failed]
                probe = ProbeState.from_notes(notes, target)
                accounts.append(_Account(target, counts, shown, probe.answered if probe else None))
        finally:
            await ledger.aclose()
    if as_json:
        typer.echo(json.dumps([_document(account) for account in accounts], indent=2))
    else:
        for account in accounts:
            _print(account, settings.cloud_region, failed=failed)
    return 0


async def _send_again(home: Home) -> int:
    """Make the next sync by http send all memories again. Raises AlreadyRunning."""
    identity = await asyncio.to_thread(home.prepare)
    with home.lock("memories", retry=False):
        ledger = await home.open_ledger()
        try:
            target = home.targets(identity)[HTTP]
            delivered = (await ledger.memories().counts(target)).delivered
            await ledger.forget(target, list((await ledger.record(target)).databases))
            await ledger.note(PREFIX + target.id, "")
        finally:
            await ledger.aclose()
    typer.echo(f"the next sync by http sends {delivered:,} memories to {target.endpoint} again")
    return 0


def _document(account: _Account) -> Mapping[str, object]:
    return {
        "method": account.target.method,
        "endpoint": account.target.endpoint,
        "bucket": account.target.bucket,
        "delivered": account.counts.delivered,
        "waiting": dict(account.counts.waiting),
        "refused": dict(account.counts.refused),
        "confirmed_at": account.confirmed_at.isoformat() if account.confirmed_at else None,
        "delivered_means": DELIVERED_TO_AKOSHA if account.target.method == HTTP else "",
        "memories": [
            {
                "database": one.row.database,
                "kind": one.row.kind,
                "id": one.row.id,
                "state": one.state,
                "reason": one.reason,
                "since": one.since.isoformat(),
            }
            for one in account.held
        ],
    }


def _print(account: _Account, region: str, *, failed: bool) -> None:
    console = table_console()
    counts, target = account.counts, account.target
    refused, waiting = sum(counts.refused.values()), sum(counts.waiting.values())
    console.print(
        f"{target.method}  {location_of(target.method, target.endpoint, target.bucket, region)}"
        f": {counts.delivered:,} delivered, {waiting:,} wait, {refused:,} were refused"
    )
    if target.method == HTTP and counts.delivered:
        console.print(f"  {DELIVERED_TO_AKOSHA}")
    if account.confirmed_at:
        console.print(f"  {CONFIRMED}: checked at {local_time(account.confirmed_at)}")
    if NO_EMBEDDING in counts.waiting:
        console.print(f"  {counts.waiting[NO_EMBEDDING]:,} wait for an embedding: {EMBEDDING_HINT}")
    if not account.held:
        return
    table = Table("database", "kind", box=None, padding=(0, 2, 0, 2))
    for title in ("id", "state", "reason"):
        table.add_column(title, overflow="fold")
    for one in account.held:
        table.add_row(
            one.row.database,
            one.row.kind,
            shorten(one.row.id, LONGEST_SHOWN),
            one.state,
            shorten(one.reason, LONGEST_SHOWN),
        )
    print_table(table)
    total = refused if failed else refused + waiting
    if len(account.held) < total:
        console.print(f"  and {total - len(account.held):,} more")
