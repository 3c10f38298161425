"""`config`: every setting, its value and its source."""

import json

import typer
from rich.table import Table

from agent.entrypoints.cli.command import CommandGroup, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.cli.terminal import print_table
from agent.settings import settings_table

app = CommandGroup()


@app.command()
def config(options: Options, as_json: AsJson = False) -> None:
    """Show every setting, its value and its source. Secrets are masked."""
    loaded = options.load()
    rows = settings_table(loaded)
    if as_json:
        document = {row.key: {"value": row.value, "origin": row.origin, "default": row.default} for row in rows}
        typer.echo(json.dumps({"settings": document, "warnings": list(loaded.warnings)}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for row in rows:
        table.add_row(row.key, row.value or '""', row.origin, style=None if row.origin != "default" else "dim")
    print_table(table)
