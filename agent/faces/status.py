"""`status`: everything at a glance."""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.application.status import Status, describe
from agent.domain.databases import Survey
from agent.domain.errors import SnapshotError
from agent.domain.states import TargetRecord
from agent.faces.results import human_bytes
from agent.settings import Settings
from agent.wiring import Home


async def show_status(settings: Settings, *, as_json: bool) -> int:
    """Print the status. Returns 0: what is wrong is in it."""
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    records, notes, results_waiting = [], {}, 0
    targets = home.targets(identity).values()
    if not await home.has_ledger():
        records = [TargetRecord(target) for target in targets]
    else:
        ledger = await home.read_ledger()
        try:
            records = [await ledger.record(target) for target in targets]
            notes = dict(await ledger.notes())
            results_waiting = len(await ledger.outbox())
        finally:
            await ledger.aclose()
    survey: Survey = {}
    problem = ""
    try:
        survey = await home.taker().survey()
    except SnapshotError as error:
        problem = str(error)
    holder = await asyncio.to_thread(home.holder)
    status = describe(
        system_id=identity.system_id,
        agent_id=identity.agent_id,
        route=settings.route,
        records=records,
        survey=survey,
        notes=notes,
        results_waiting=results_waiting,
        running=holder is not None and holder.command == "run",
    )
    running = None if holder is None else {"pid": holder.pid, "command": holder.command, "since": str(holder.since)}
    if as_json:
        document = asdict(status) | {
            "running": running,
            "sync_enabled": settings.sync_enabled,
            "data_dir": str(settings.agent_data_dir),
            "problem": problem,
            "state_dir": str(settings.agent_state_dir),
        }
        typer.echo(json.dumps(document, indent=2, default=str))
    else:
        _print(status, settings, running, problem)
    return 0


def _print(status: Status, settings: Settings, running: dict[str, object] | None, problem: str) -> None:
    # Names, paths and errors are shown as they are: to rich, [...] and :...: in them would mean something.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    who = f"running (pid {running['pid']}, {running['command']})" if running else "not running: akosha-agent run"
    console.print(f"agent      {who}")
    console.print(f"system     {status.system_id}")
    console.print(f"databases  {settings.agent_data_dir}")
    if running and status.notes.get("watcher"):
        console.print(f"watching   {status.notes['watcher']}")
    if status.bus:
        since = "" if status.bus.since is None else f"  (since {_when(status.bus.since)}, {_age(status.bus.since)})"
        console.print(f"bus        {status.bus.text}{since}")
    if settings.over_nats and status.results_waiting:
        console.print(f"results    {status.results_waiting} wait to be told")
    if not settings.sync_enabled:
        console.print("sync       switched off (akosha_sync_enabled is false)")
    if not status.targets:
        console.print("target     none: set akosha_cloud_bucket, or akosha_cloud_endpoint to file:///a/directory")
    console.print(f"pending    {problem or ', '.join(status.pending) or 'nothing'}")
    for target in status.targets:
        where = f"  {target.endpoint or 'AWS S3'} {target.bucket}".rstrip()
        console.print(Text.assemble("\n", (target.method, "bold"), where))
        last = target.newest_upload_id or "never"
        ago = "" if target.last_success is None else f"  ({_age(target.last_success)})"
        console.print(f"  last upload  {last}{ago}")
        if target.error:
            console.print(f"  last error   {target.error}")
        if target.next_try:
            console.print(f"  next try     {_when(target.next_try)}")
        table = Table("database", "state", "size", "", box=None, padding=(0, 2, 0, 2))
        for row in target.databases:
            table.add_row(row.name, "pending" if row.pending else row.state, human_bytes(row.size), row.problem)
        console.print(table)


def _when(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _age(at: datetime) -> str:
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"
