"""`memories`: how many memories each target has, and the memories that it lacks, with the reason."""

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated

import typer

from agent.application.monitoring.status import DELIVERED_TO_AKOSHA
from agent.application.sync.delivery_probe import PREFIX, ProbeState
from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain.routing import HTTP
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.memories_text import Account, Texts, account_lines
from agent.entrypoints.text_lines import print_lines
from agent.settings import Settings

MOST_SHOWN = 1000
"""Number of memories that are read from the ledger, without --all."""

EVERY_ONE = 10**9

app = CommandGroup()


@app.command()
async def memories(
    settings: Settings,
    failed: Annotated[bool, typer.Option("--failed", help="Show only memories that the server refused.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every memory that waits or was refused.")] = False,
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
                held = await ledger.memories().held(target, limit=EVERY_ONE if everything else MOST_SHOWN)
                shown = [one for one in held if one.state == "refused" or not failed]
                probe = ProbeState.from_notes(notes, target)
                known = (await ledger.record(target)).databases.values()
                rows = sum(sum(one.rows.values()) for one in known)
                accounts.append(Account(target, counts, shown, probe.answered if probe else None, rows))
        finally:
            await ledger.aclose()
    if as_json:
        typer.echo(json.dumps([_document(account) for account in accounts], indent=2))
        return 0
    texts: Texts = {}
    if not everything and (keys := {one.row.key for account in accounts for one in account.examples()}):
        from agent.bootstrap.memory_texts import texts_of  # noqa: PLC0415 - imports what reads databases

        texts = await texts_of(home, keys)
    for account in accounts:
        target = account.target
        location = location_of(target.method, target.endpoint, target.bucket, settings.cloud_region)
        print_lines(account_lines(account, location, texts, failed=failed, everything=everything))
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


def _document(account: Account) -> Mapping[str, object]:
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
