"""The commands that look into the archive: `uploads`, with `list` and `show`, and `verify`."""

from typing import Annotated

import typer

from agent.entrypoints.cli.command import AsJson, CommandGroup, DataDir, SettingsFile, StateDir, finish, load_settings

System = Annotated[
    str | None,
    typer.Option("--system", metavar="SYSTEM", help="Another machine's uploads, by its system id.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="Read the manifests of old ones, too: a request each.")]

uploads = CommandGroup(help="Show the uploads there are, the newest first; or everything about one.")


@uploads.callback(invoke_without_command=True)
def _list_by_default(
    context: typer.Context,
    everything: Everything = False,
    system: System = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    if context.invoked_subcommand is None:
        list_(everything, system, as_json, data_dir, state_dir, settings)
        return
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            # The command that follows would not hear of it, and show our uploads for another system's.
            context.fail(f"{option.opts[0]} goes behind {context.invoked_subcommand}")


@uploads.command(name="list")
def list_(
    everything: Everything = False,
    system: System = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Show the uploads there are, the newest first."""
    from agent.entrypoints.cli.uploads import list_uploads  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    finish(list_uploads(loaded.settings, system=system, everything=everything, as_json=as_json))


@uploads.command()
def show(
    upload: Annotated[str, typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix.")],
    system: System = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Show everything about one upload: every file, the memories, what is missing in it."""
    from agent.entrypoints.cli.uploads import show_upload  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    finish(show_upload(loaded.settings, upload, system=system, as_json=as_json))


def verify(
    upload: Annotated[
        str | None,
        typer.Argument(metavar="[latest|ID]", help="Upload ID or unique prefix.", show_default="latest"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every upload.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Download everything, check its SHA-256, read every table through.")
    ] = False,
    system: System = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Look whether an upload is whole in the bucket. Exits with 0 (whole), 1 (damaged) or 2 (usage).

    Without --deep nothing is downloaded but the manifest: what the store says of each object is compared with it.
    """
    from agent.entrypoints.cli.verify import verify as look  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True)
    finish(look(loaded.settings, upload, everything=everything, deep=deep, system=system, as_json=as_json))
