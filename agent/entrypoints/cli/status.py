"""`status`: show the status as text or JSON."""

import json
import sys
from datetime import UTC, datetime

import typer

from agent.application.monitoring.status import TargetStatus, VerifyStatus
from agent.bootstrap.home import RUN, Home
from agent.bootstrap.stores import location_of
from agent.domain.identity import suffixed
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.plain_text import printable, problem_list
from agent.domain.routing import CLOUD_HINT, HTTP
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import columns, error_lines, human_bytes, json_value, local_time
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_view import gather_status
from agent.ports import MemoryCounts
from agent.settings import Settings

app = CommandGroup()


@app.command()
async def status(settings: Settings, as_json: AsJson = False) -> int:
    """Show the agent, pending changes, the last uploads, and what blocks the next one."""
    document = await gather_status(settings)
    if as_json:
        if document.unresponsive_agent:
            typer.echo(f"akosha-agent: {document.unresponsive_agent}", err=True)
        typer.echo(json.dumps(document.to_dict(), indent=2, default=json_value))
    else:
        _print(document, settings)
    return 0


def _print(status: StatusDocument, settings: Settings) -> None:
    _echo(f"agent      {_agent(status)}")
    _echo(f"system     {status.system_id}{_undecided(status, settings)}")
    _echo(f"databases  {status.data_dir}")
    if status.running and status.notes.get("watcher"):
        _echo(f"watching   {_watching(status.notes['watcher'])}")
    if status.bus:
        since = (
            "" if status.bus.since is None else f"  (since {local_time(status.bus.since)}, {_age(status.bus.since)})"
        )
        _echo(f"bus        {status.bus.text}{since}")
    if settings.over_nats and status.results_waiting:
        _echo(f"results    {status.results_waiting} wait to be published")
    if status.verified:
        _echo(f"verified   {_verified(status.verified)}")
    for warning in status.warnings:
        _echo(f"warning    {warning}")
    if not status.sync_enabled:
        _echo("sync       disabled (akosha_sync_enabled is false)")
    if not status.targets:
        _echo(f"target     none: {CLOUD_HINT}")
    _echo(f"pending    {status.problem or ', '.join(status.pending) or 'nothing'}")
    for target in status.targets:
        _echo("")
        location = location_of(target.method, target.endpoint, target.bucket, settings.cloud_region)
        _echo(f"  {location}", bold=target.method)
        _echo(f"  {'last push  ' if target.method == HTTP else 'last upload'}  {_last_delivery(target)}")
        if memories := _counted(target.memories):
            _echo(f"  memories     {memories}")
        if target.memories.delivered and target.delivered_means:
            _echo(f"               {target.delivered_means}")
        if target.confirmed_at:
            _echo(f"  confirmed    {CONFIRMED}  ({_age(target.confirmed_at)})")
        if target.error:
            message, *hint = error_lines("", target.error)
            _echo(f"  last error   {message}")
            for line in hint:
                _echo(f"               {line.strip()}")
        if target.next_try:
            _echo(f"  next try     {_next_try(status, target.next_try)}")
        rows = [
            (row.name, "pending" if row.pending else row.state, human_bytes(row.size), row.problem)
            for row in target.databases
        ]
        for line in columns([("database", "state", "size", ""), *rows]):
            _echo(f"  {line}")


def _echo(line: str, *, bold: str = "") -> None:
    """Print a line without rich, which takes 50 ms to import. `bold` is put before it, in bold on a terminal."""
    bold = typer.style(bold, bold=True) if bold and sys.stdout.isatty() else bold
    sys.stdout.write(f"{bold}{printable(line)}\n")


def _agent(status: StatusDocument) -> str:
    if status.running is None:
        return "not running (to start it: akosha-agent run)"
    return status.unresponsive_agent or f"running (pid {status.running.get('pid')}, {status.running.get('command')})"


def _undecided(status: StatusDocument, settings: Settings) -> str:
    """Return the system ID that the first upload takes if another machine uses the default one; "" if it is decided."""
    if not status.system_id_undecided:
        return ""
    other = suffixed(status.system_id, Home.of(settings).machine())
    return f"  (may become {other} if another machine already uses this name)" if other else ""


def _watching(mode: str) -> str:
    """Return the watcher's mode; `native` is shown as the name of the system's interface."""
    return {"linux": "inotify", "darwin": "FSEvents"}.get(sys.platform, mode) if mode == "native" else mode


def _next_try(status: StatusDocument, at: datetime) -> str:
    """Return the time of the next attempt. Only a running agent makes one by itself."""
    if status.running is None or status.running.get("command") != RUN:
        return "none, because no agent is running (akosha-agent sync tries now)"
    return local_time(at) if at > datetime.now(UTC) else "now"


def _last_delivery(target: TargetStatus) -> str:
    if target.last_success is None:
        return "never"
    return f"{target.newest_upload_id or local_time(target.last_success)}  ({_age(target.last_success)})"


def _verified(last: VerifyStatus) -> str:
    """Return the result of the last verification of the newest upload."""
    if last.whole:
        return f"{last.upload_id} is intact  ({_age(last.at)})"
    problems = problem_list(last.problems)
    return f"{last.upload_id} is DAMAGED  ({_age(last.at)}): {problems}"


def _counted(memories: MemoryCounts) -> str:
    """Return how many memories the target has, and how many it lacks; "" if there are none."""
    counts = [f"{memories.delivered:,} delivered"] if memories.delivered else []
    counts += [
        f"{count:,} wait: {reason}" + (f" ({EMBEDDING_HINT})" if reason == NO_EMBEDDING else "")
        for reason, count in sorted(memories.waiting.items())
    ]
    if memories.refused:
        counts.append(f"{sum(memories.refused.values()):,} were refused: akosha-agent memories --failed lists them")
    return "; ".join(counts)


def _age(at: datetime) -> str:
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"
