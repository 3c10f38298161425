"""`events`: the ledger's history, and what follows."""

import typer

from agent.domain.events import Event, IngestCompleted, IngestFailed, SyncRequested, SyncResult
from agent.faces.results import ingested, sentence
from agent.ports import Ledger
from agent.settings import Settings
from agent.wiring import Home

LOOK_SECONDS = 0.25


async def show_events(settings: Settings, *, follow: bool, as_json: bool) -> int:
    """Print events, oldest first; with `follow`, for ever. Returns 0."""
    home = Home.of(settings)
    ledger = await opened(home, wait=follow)
    if ledger is None:
        typer.echo("nothing has happened yet: no agent has run with this state directory", err=True)
        return 0
    position = 0
    try:
        while True:
            batch = await ledger.history(after=position)
            for entry in batch:
                position = entry.position
                typer.echo(home.codec.encode(entry.event).decode() if as_json else line(entry.event))
            if batch:
                continue
            if not follow:
                return 0
            await home.clock.sleep(LOOK_SECONDS)
    finally:
        await ledger.aclose()


def line(event: Event, *, system: bool = False) -> str:
    """Return an event in one line for a person; with `system`, its system id in it."""
    when = f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}"
    what = event.type.removeprefix("akosha.").rsplit(".", 1)[0]
    text = ""
    if isinstance(event, SyncRequested):
        text = f"{event.reason}, by {' then '.join(event.route)}"
    elif isinstance(event, SyncResult):
        text = sentence(event)
    elif isinstance(event, IngestCompleted | IngestFailed):
        text = ingested(event)
    whose = f"{event.system_id}  " if system else ""
    return f"{when}  {what:<15}  {whose}{text}".rstrip()


async def opened(home: Home, *, wait: bool) -> Ledger | None:
    """Open the ledger for reading; where there is none, wait for it, or return None."""
    while not await home.has_ledger():
        if not wait:
            return None
        await home.clock.sleep(LOOK_SECONDS)
    return await home.read_ledger()
