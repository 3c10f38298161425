"""`status`: show the status as text or JSON."""

import json

import typer

from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain.identity import suffixed
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import json_value
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_text import status_lines
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.text_lines import Line, print_lines
from agent.settings import Settings

app = CommandGroup()


@app.command()
async def status(settings: Settings, as_json: AsJson = False) -> int:
    """Show whether all memories are safe, what is under way, and what blocks the next sync."""
    document = await gather_status(settings)
    if as_json:
        if document.unresponsive_agent:
            typer.echo(f"akosha-agent: {document.unresponsive_agent}", err=True)
        typer.echo(json.dumps(document.to_dict(), indent=2, default=json_value))
    else:
        print_lines(lines_of(document, settings))
    return 0


def lines_of(document: StatusDocument, settings: Settings) -> list[Line]:
    """Return the text of the status of an agent with these settings."""
    locations = {
        target.method: location_of(target.method, target.endpoint, target.bucket, settings.cloud_region)
        for target in document.targets
    }
    undecided = document.system_id_undecided
    other = suffixed(document.system_id, Home.of(settings).machine()) if undecided else None
    return status_lines(document, locations=locations, over_nats=settings.over_nats, other_id=other or "")
