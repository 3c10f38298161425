"""`config`: settings with their values and sources; `set` and `unset` change the agent's own files."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from agent.bootstrap.home import Home
from agent.domain.errors import SettingsError
from agent.domain.plain_text import MASK, printable
from agent.entrypoints.cli.command import CommandGroup, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.cli.terminal import print_table
from agent.entrypoints.stored_settings import (
    draft,
    notes_on,
    notice_of_earlier_settings,
    overriding_variable,
    own_key,
)
from agent.settings import Loaded, Row, settings_table
from agent.settings.model import FIELDS, S3_KEYS
from agent.settings.own_files import check_private_file, config_file, credentials_file, is_secret, read_credentials
from agent.settings.sources import COMMAND_LINE
from agent.settings.validators import PREFIX

STANDARD_INPUT = "-"
_INPUT = "standard input"
EMPTY = '""'

app = CommandGroup(help="Show the settings that are set, their values and sources; or change the agent's own settings.")


@app.callback(invoke_without_command=True)
def config(
    context: typer.Context,
    options: Options,
    everything: Annotated[bool, typer.Option("--all", help="Show every setting; --json does so by default.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Show only the settings that are set (default).")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the settings that are set, their values and sources. Secrets are masked.

    With --json: every setting, or with --changed those that are set.
    """
    if context.invoked_subcommand is not None:
        return
    if everything and changed:
        raise SettingsError("--all and --changed exclude each other")
    loaded = options.load()
    rows = [*settings_table(loaded), *_s3_keys()]
    shown = rows if everything or (as_json and not changed) else [row for row in rows if row.origin != "default"]
    if as_json:
        document = {row.key: {"value": row.value, "origin": row.origin, "default": row.default} for row in shown}
        files = {"files": list(loaded.files), "warnings": list(loaded.warnings)}
        typer.echo(json.dumps({"settings": document, **files}, indent=2))
        return
    _show(loaded, shown, hidden=len(rows) - len(shown))


@app.command("set")
def set_(
    values: Annotated[
        list[str], typer.Argument(metavar="KEY VALUE", help="Keys, each with its value; - reads the value.")
    ],
) -> None:
    """Store settings in the agent's own files: secrets in credentials.yaml, others in config.yaml.

    All settings are validated first; if one is invalid, nothing is stored. With - as the value, the command asks for
    it without echo, or reads a line from standard input; secrets are accepted in no other way.
    """
    keys, texts = values[::2], values[1::2]
    if len(keys) != len(texts):
        raise SettingsError(f"{_named(keys[-1])} has no value", hint="akosha-agent config set KEY VALUE")
    given: dict[str, str | None] = {}
    origins: dict[str, str] = {}
    if STANDARD_INPUT in texts:  # before a secret is asked for
        check_private_file(credentials_file(os.environ, Path.home()))
    for written, text in zip(keys, texts, strict=True):
        key = own_key(written)
        if text != STANDARD_INPUT and is_secret(key, text):
            raise SettingsError(
                f"the value of {_named(written)} is a secret, which a command line shows to other users",
                hint=f"akosha-agent config set {key} - asks for it, or reads it from standard input",
            )
        given[key] = _read(written) if text == STANDARD_INPUT else text
        origins[key] = _INPUT if text == STANDARD_INPUT else COMMAND_LINE
    _store(given, origins)


@app.command()
def unset(keys: Annotated[list[str], typer.Argument(metavar="KEY", help="The settings to remove.")]) -> None:
    """Remove settings from the agent's own files. Other sources, else the defaults, are then used."""
    _store({own_key(key): None for key in keys}, {})


@app.command()
def path(
    credentials: Annotated[bool, typer.Option("--credentials", help="The path of credentials.yaml instead.")] = False,
) -> None:
    """Print the path of the agent's own settings file, config.yaml. It does not exist before the first setting."""
    file = credentials_file if credentials else config_file
    typer.echo(file(os.environ, Path.home()).path)


def _s3_keys() -> list[Row]:
    """Return rows for the stored S3 keys, which are no settings."""
    file = credentials_file(os.environ, Path.home())
    stored = read_credentials(file)
    held = stored.values if stored else {}
    return [Row(PREFIX + key, MASK, file.name, "", "") for key in S3_KEYS if held.get(key)]


def _show(loaded: Loaded, rows: list[Row], *, hidden: int) -> None:
    own = config_file(os.environ, Path.home()).name
    files = loaded.files or (f"none (akosha-agent config set KEY VALUE creates {own})",)
    for label, name in zip(("files", *("" for _ in files[1:])), files, strict=True):
        typer.echo(printable(f"{label:<5}  {name}"))
    if rows:
        typer.echo()
        table = Table(box=None, pad_edge=False)
        table.add_column("setting", no_wrap=True)
        table.add_column("value", overflow="fold")
        table.add_column("from", overflow="fold")
        for row in rows:
            table.add_row(row.key, row.value or EMPTY, row.origin, style=None if row.origin != "default" else "dim")
        print_table(table)
    if hidden:
        typer.echo(f"\n{hidden} {'others have' if rows else 'settings have'} their defaults: akosha-agent config --all")


def _named(written: str) -> str:
    """Return a key for a message: as the user wrote it, and with its prefix."""
    return written if written.startswith(PREFIX) else f"{written} ({PREFIX}{own_key(written)})"


def _read(written: str) -> str:
    """Ask for a value without echo, or read a line of standard input. Raises SettingsError if it is empty."""
    if sys.stdin.isatty():
        return str(typer.prompt(written, hide_input=True, err=True))
    text = sys.stdin.readline().removesuffix("\n")
    if not text:
        raise SettingsError(
            f"standard input has no value for {_named(written)}", hint="write one line for each - in the command"
        )
    return text


def _store(given: Mapping[str, str | None], origins: Mapping[str, str]) -> None:
    found = draft(given, os.environ, Path.home(), Path.cwd(), origins)
    changed = [key for key, text in given.items() if text and key in FIELDS]
    for warning in (*found.warnings, *notes_on(found.loaded.settings, changed)):
        typer.echo(printable(f"warning: {warning}"), err=True)
    found.write()
    rows = {row.key: row for row in [*settings_table(found.loaded), *_s3_keys()]}
    for key in given:
        row = rows.get(PREFIX + key)
        value = f"{row.value or EMPTY} ({row.origin})" if row else "not set"
        typer.echo(printable(f"{PREFIX}{key}: {value}"))
        if name := overriding_variable(key, os.environ):
            typer.echo(f"warning: {name} is set in this shell and is used instead here", err=True)
    settings = found.loaded.settings
    notice = notice_of_earlier_settings(Home.of(settings).clock.now(), settings)
    if found.files and notice:
        typer.echo(notice)
