"""`restore` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from agent.entrypoints.cli.command import AsJson, DataDir, SettingsFile, StateDir, finish, load_settings


def _directory(text: str) -> Path:
    """An empty text is a variable that was not set, not the directory one is in."""
    if not text:
        raise typer.BadParameter("no directory is named")
    return Path(text)


def restore(
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", parser=_directory, help="Where to; made where it is not there.")
    ],
    which: Annotated[
        str | None,
        typer.Argument(metavar="[latest|ID]", help="Which upload; the beginning of its id does. Default: latest."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="The newest upload up to then: '2026-11-20 18:00', or RFC 3339."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="This database alone (reflection); may be repeated. Default: all."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Leave main file and WAL as they were, instead of making one file of them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where there are files already: they are kept aside, named by time.")
    ] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="SYSTEM", help="Another machine's uploads.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Bring the databases of an upload back as files: checked, in one piece, and never over what is in use.

    A restore that was interrupted goes on where it was when it is run again.
    """
    from agent.entrypoints.cli.restore import Asked, restore as work  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    asked = Asked(
        which=which, at=at, to=to, only=tuple(only or ()), raw=raw, force=force, system=system, as_json=as_json
    )
    finish(work(loaded.settings, asked))
