"""`status`: show the status as text or JSON."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer

from agent.bootstrap.home import RUN, Home
from agent.bootstrap.stores import location_of, targets_of
from agent.domain.errors import SettingsError
from agent.domain.identity import suffixed
from agent.domain.plain_text import printable
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import json_value, local_time
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_text import LABEL, status_lines
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.text_lines import Line, Style, has_colours, labelled, print_lines, rendered
from agent.settings import Settings

app = CommandGroup()


@app.command()
async def status(
    settings: Settings,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show the status live, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show whether all memories are safe, what is under way, and what blocks the next sync."""
    if watch and as_json:
        raise SettingsError(
            "both --watch and --json were given",
            hint="akosha-agent events --follow --json prints events as they happen",
        )
    if watch:
        return await _watch(settings)
    document = await gather_status(settings)
    if as_json:
        if document.unresponsive_agent:
            typer.echo(f"akosha-agent: {document.unresponsive_agent}", err=True)
        typer.echo(json.dumps(document.to_dict(), indent=2, default=json_value))
    else:
        print_lines(lines_of(document, settings))
    return 0


async def _watch(settings: Settings) -> int:
    """Show the status until Ctrl-C, on the whole terminal; elsewhere print each new verdict."""
    from agent.entrypoints.status_watch import Screen, StatusWatch  # noqa: PLC0415 - only this option needs it

    if not sys.stdout.isatty():
        last: tuple[object, ...] = ()

        def print_new(document: StatusDocument, now: datetime) -> None:
            nonlocal last
            verdict = document.judged(now).verdict
            assert verdict is not None
            uploads = [target.newest_upload_id or target.last_success for target in document.targets]
            if (state := (verdict.severity, document.pending, document.problem, uploads)) != last:
                last = state
                typer.echo(f"{local_time(now)}  {printable(verdict.text)}")
                sys.stdout.flush()

        await StatusWatch(settings, print_new).run()
    lines: list[str] = []
    colours = has_colours(sys.stdout)
    try:
        with Screen() as screen:

            def draw(document: StatusDocument, now: datetime) -> None:
                nonlocal lines
                size = shutil.get_terminal_size()
                lines = rendered(lines_of(document, settings, now), width=size.columns, colours=colours)
                footer = rendered([Line(f"{local_time(now)}  Ctrl-C ends", Style.DIM)], width=None, colours=colours)
                screen.draw([*lines, "", *footer], size.lines)

            await StatusWatch(settings, draw).run()
    except asyncio.CancelledError:
        return 0
    finally:
        typer.echo("\n".join(lines))


def lines_of(document: StatusDocument, settings: Settings, now: datetime | None = None) -> list[Line]:
    """Return the text of the status of an agent with these settings, as of `now`: by default the present time."""
    locations = {
        target.method: location_of(target.method, target.endpoint, target.bucket, settings.cloud_region)
        for target in document.targets
    }
    undecided = document.system_id_undecided
    other = suffixed(document.system_id, Home.of(settings).machine()) if undecided else None
    lines = status_lines(document, locations=locations, over_nats=settings.over_nats, other_id=other or "", now=now)
    notices = [labelled("settings", text, LABEL, Style.WARNING).map(printable) for text in _notices(document, settings)]
    return [*lines[:2], *notices, *lines[2:]]


def _notices(document: StatusDocument, settings: Settings) -> Iterator[str]:
    """Yield that no target was chosen, or how the settings of the running agent differ from those of this command."""
    target = document.targets[0] if document.targets else None
    if not settings.target_chosen and not (target and target.last_success):
        yield "no target is chosen: akosha-agent init asks where memories go"
    running = document.running
    if running is None or running.get("command") != RUN or target is None:
        return
    expected = targets_of(settings, document.system_id)[settings.route[0]]
    if (target.method, target.endpoint, target.bucket) == (expected.method, expected.endpoint, expected.bucket):
        return
    here = location_of(expected.method, expected.endpoint, expected.bucket, settings.cloud_region)
    reload = f"kill -HUP {running.get('pid')}"
    yield f"the running agent has another target than these settings, {here}; it reads them after {reload}"
