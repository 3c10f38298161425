"""`sync`: one sync, done by this process or by the running agent."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from agent.domain.events import SyncProgress
from agent.domain.plain_text import printable
from agent.domain.routing import CLOUD
from agent.entrypoints import logs
from agent.entrypoints.cli.command import CommandGroup, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import json_value, sync_lines
from agent.entrypoints.progress_line import progress_bar
from agent.entrypoints.sync_client import SyncClient
from agent.entrypoints.text_lines import Line, print_lines
from agent.settings import Settings

app = CommandGroup()


class Method(StrEnum):
    """How to deliver."""

    AUTO = "auto"
    CLOUD = "cloud"
    HTTP = "http"


@app.command()
async def sync(
    options: Options,
    method: Annotated[Method, typer.Option(help="How to deliver; auto follows the settings.")] = Method.AUTO,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Fail instead of trying the next method.")] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Take over the uploads of this system ID from the machine or state directory that owns them.",
        ),
    ] = False,
    new_target: Annotated[
        bool,
        typer.Option(
            "--new-target",
            help="Accept that the disk, directory or bucket was replaced on purpose, and upload everything to it.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, how large it is, and to which target.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Sync once, now. If an agent is running, it does the sync, with its own settings."""
    settings = options.load().settings
    if dry_run:
        return await _preview(settings, method=method.value, enable_fallback=not no_fallback, as_json=as_json)
    client = await SyncClient.prepare(
        settings,
        data_dir=options.data_dir and settings.agent_data_dir,
        method=method.value,
        enable_fallback=not no_fallback,
        take_over=take_over,
        new_target=new_target,
    )
    return await sync_shown(client, as_json=as_json)


async def sync_shown(client: SyncClient, *, as_json: bool = False) -> int:
    """Do a sync, show its progress, and print its result. Returns the exit code. Raises as `SyncClient.result`."""
    async with progress_bar() as bar:
        bar.phase("looking for changes", None)

        def show(event: SyncProgress) -> None:
            bar.show(event.phase, event.done_bytes, event.total_bytes, kept=event.kept_bytes)

        def say(text: str) -> None:
            bar.say(f"akosha-agent: {logs.redacted(text)}")

        result = await client.result(on_progress=show, on_message=say)
    if as_json:
        from agent.entrypoints.result_document import ResultDocument  # noqa: PLC0415 - building its pydantic model takes time

        typer.echo(json.dumps(ResultDocument.of(result).to_dict(), indent=2))
    else:
        print_lines([Line(printable(line)) for line in sync_lines(result)], err=not result.success)
        if client.ask.take_over and result.success and result.method == CLOUD:
            typer.echo(f"the uploads of {result.system_id} there belong to this machine now")
    return 0 if result.success else 1


async def _preview(settings: Settings, *, method: str, enable_fallback: bool, as_json: bool) -> int:
    from agent.entrypoints.sync_preview import preview_lines, preview_of  # noqa: PLC0415 - only this option needs it

    found = await preview_of(settings, method=method, enable_fallback=enable_fallback)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, default=json_value))
    else:
        print_lines(line.map(printable) for line in preview_lines(found))
    return 0
