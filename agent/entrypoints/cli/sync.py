"""`sync`: one sync now, done here, or by the agent that runs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from agent.domain.events import SyncProgress
from agent.domain.plain_text import printable
from agent.entrypoints import logs
from agent.entrypoints.results import sentence
from agent.entrypoints.sync_client import Hear, Says, SyncClient
from agent.settings import Settings


async def sync_once(
    settings: Settings,
    *,
    method: str,
    enable_fallback: bool,
    as_json: bool,
    take_over: bool = False,
    new_target: bool = False,
) -> int:
    """Sync and print the result. Returns 0 (uploaded or unchanged) or 1 (failed)."""
    asking = await SyncClient.prepare(
        settings, method=method, enable_fallback=enable_fallback, take_over=take_over, new_target=new_target
    )
    with _progress_bar() as (show, say):
        result = await asking.result(hear=show, says=say)
    if as_json:
        from agent.entrypoints.documents import ResultDocument  # noqa: PLC0415 - its model takes time to build

        typer.echo(json.dumps(ResultDocument.of(result).to_dict(), indent=2))
    else:
        typer.echo(printable(sentence(result)), err=not result.success)
    return 0 if result.success else 1


def _say(text: str) -> None:
    typer.echo(_line(text), err=True)


def _line(text: str) -> str:
    return f"akosha-agent: {logs.redacted(text)}"


@contextmanager
def _progress_bar() -> Iterator[tuple[Hear, Says]]:
    """Show progress on a terminal, and what is said meanwhile on lines above it; no progress in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _: None, _say
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}
        waiting = bar.add_task("sync", total=None)

        def show(event: SyncProgress) -> None:
            bar.update(waiting, visible=False)
            if event.phase not in tasks:
                tasks[event.phase] = bar.add_task(event.phase, total=event.total_bytes)
            bar.update(tasks[event.phase], completed=event.done_bytes, total=event.total_bytes)

        yield show, lambda text: bar.console.print(Text(_line(text)), soft_wrap=True)
