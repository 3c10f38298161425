"""`fleet`: every system that is known from the bucket or from NATS."""

import json
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from agent.application.fleet.fleet import FleetReport
from agent.bootstrap.fleet import open_fleet
from agent.domain.errors import SettingsError
from agent.domain.plain_text import printable_json
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.fleet_text import fleet_lines
from agent.entrypoints.formatting import json_value
from agent.entrypoints.text_lines import print_lines, screen_width
from agent.settings import Settings

FINE, NOT_FINE = 0, 1

app = CommandGroup()


@app.command(data_dir=False)
async def fleet(
    settings: Settings,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show the systems live, until Ctrl-C.")] = False,
    overdue_hours: Annotated[
        float,
        typer.Option("--overdue-hours", min=0.1, max=87_600, help="A system without a result for longer is overdue."),
    ] = 24.0,
    as_json: AsJson = False,
) -> int:
    """Show every system in the bucket and on NATS: its last result, failures, version, and how far ingestion is.

    Exits with 0 if there are systems, all are fine, and both sources could be read; else with 1.
    """
    if watch and as_json:
        raise SettingsError(
            "both --watch and --json were given",
            hint="akosha-agent events --follow --system '*' --json prints the results of all systems as they happen",
        )
    async with open_fleet(settings, overdue=timedelta(hours=overdue_hours)) as found:
        if watch:
            from agent.entrypoints.fleet_watch import watch_fleet  # noqa: PLC0415 - only this option needs it

            return await watch_fleet(found)
        await found.read()
        report = found.report()
    if as_json:
        typer.echo(printable_json(json.dumps(fleet_document(report), indent=2, default=json_value)))
    else:
        print_lines(fleet_lines(report, width=screen_width(sys.stdout)))
    return FINE if report.is_fine else NOT_FINE


def fleet_document(report: FleetReport) -> dict[str, object]:
    """Return the JSON document of a report."""
    return {"fine": report.is_fine, **asdict(report)}
