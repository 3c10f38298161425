"""`events`: the ledger's history, and what follows."""

from contextlib import aclosing

import typer

from agent.bootstrap.home import Home
from agent.domain.events import (
    Event,
    IngestCompleted,
    IngestFailed,
    SyncRequested,
    SyncResult,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.plain_text import printable
from agent.entrypoints import control_client
from agent.entrypoints.results import ingested, pruned, sentence, verified, when
from agent.ports import Ledger
from agent.settings import Settings


async def show_events(settings: Settings, *, follow: bool, as_json: bool) -> int:
    """Print events, oldest first; with `follow`, for ever: live while an agent runs. Returns 0."""
    home = Home.of(settings)
    ledger = await opened(home, wait=follow)
    if ledger is None:
        typer.echo("nothing has happened yet: no agent has run with this state directory", err=True)
        return 0
    try:
        found = control_client.follow(home, ledger, after=0) if follow else control_client.written(ledger, after=0)
        async with aclosing(found):
            async for entry in found:
                typer.echo(home.codec.encode(entry.event).decode() if as_json else line(entry.event))
    finally:
        await ledger.aclose()
    return 0


def line(event: Event, *, system: bool = False) -> str:
    """Return an event in one line for a person; with `system`, its system id in it.

    Names and texts in it may be others', from a bucket or a bus: the line does nothing to a terminal.
    """
    what = event.type.removeprefix("akosha.").rsplit(".", 1)[0]
    text = ""
    if isinstance(event, SyncRequested):
        text = f"{event.reason}, by {' then '.join(event.route)}"
    elif isinstance(event, SyncResult):
        text = sentence(event)
    elif isinstance(event, IngestCompleted | IngestFailed):
        text = ingested(event)
    elif isinstance(event, UploadVerified):
        text = verified(event)
    elif isinstance(event, UploadsPruned):
        text = pruned(event)
    whose = f"{event.system_id}  " if system else ""
    told = f"{when(event.time)}  {what:<15}  {whose}{text}".rstrip()
    return printable(told)


async def opened(home: Home, *, wait: bool) -> Ledger | None:
    """Open the ledger for reading; where there is none, wait for it, or return None."""
    while not await home.has_ledger():
        if not wait:
            return None
        await home.clock.sleep(control_client.LOOK_SECONDS)
    return await home.read_ledger()
