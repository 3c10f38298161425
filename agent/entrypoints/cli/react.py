"""`react`: ingest the uploads in the bucket into Akosha, until stopped or once."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import structlog
import typer

from agent.application.ingest.service import IngestService, IngestSummary
from agent.bootstrap.home import Home
from agent.bootstrap.ingest import open_ingest_service
from agent.domain.errors import AkoshaError, AlreadyRunning, NamingError, SettingsError
from agent.domain.naming import check_system_id
from agent.domain.plain_text import safe_text
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.progress_line import progress_bar
from agent.entrypoints.shutdown import first_of, on_hangup
from agent.entrypoints.sync_client import REACT, SEPARATE_STATE_DIRS
from agent.settings import Settings

app = CommandGroup()

_log = structlog.get_logger()


@app.command(data_dir=False)
async def react(
    options: Options,
    system: Annotated[
        list[str] | None,
        typer.Option(
            "--system",
            metavar="SYSTEM",
            help="Ingest only this system's uploads; may be repeated. Default: all systems.",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Ingest the present uploads, print the result, and exit.")
    ] = False,
) -> int:
    """Run on the Akosha side: ingest every upload in the bucket into Akosha until stopped.

    With NATS, an upload is ingested as soon as its result is published; otherwise the bucket is checked every
    akosha_agent_rescan_seconds. On a machine where an agent runs, give this command its
    own --state-dir.
    """
    settings = options.load(LogMode.NOTHING if once else LogMode.SETTING, to_file=True).settings
    try:
        return await _react(settings, frozenset(system or ()), once=once)
    except asyncio.CancelledError:
        if once:
            raise
        return 0


async def _react(settings: Settings, systems: Collection[str], *, once: bool) -> int:
    _check(settings, systems)
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    with _locked(home):
        try:
            async with open_ingest_service(home, identity, systems) as service:
                if once:
                    return await _ingest_once(service)
                await _ingest_until_stopped(service)
        except* AkoshaError as group:
            raise first_of(group) from group
        finally:
            _log.info("ingest_stopped", agent_id=identity.agent_id)
    raise AssertionError("the service runs until it is cancelled, or fails")


async def _ingest_until_stopped(service: IngestService) -> None:
    """Run until cancelled. On SIGHUP, credentials and certificates are read again."""
    hung_up = asyncio.Event()
    on_hangup(hung_up.set)

    async def reset_clients() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await service.reset_clients()
            _log.info("clients_reset", agent_id=service.identity.agent_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(reset_clients(), name="hangup")
        await service.run()


async def _ingest_once(service: IngestService) -> int:
    async with progress_bar(of_bytes=False) as progress:
        progress.phase("ingesting", None)
        summary = await service.once(partial(progress.show, "ingesting"))
    for line in _lines(summary):
        typer.echo(line)
    for system_id, reason in sorted(summary.failures.items()):
        typer.echo(f"{system_id}: {reason}", err=True)
    return 0 if summary.success else 1


def _lines(summary: IngestSummary) -> Iterator[str]:
    if not summary.outcomes and not summary.failures:
        yield "the bucket has no uploads"
    for system_id, outcome in sorted(summary.outcomes.items()):
        tally = outcome.tally
        not_stored = sorted({**tally.waiting, **tally.refused}.items())
        parts = [f"uploads: {outcome.ingested}", f"memories stored: {tally.stored}"]
        parts += [f"already stored: {tally.known}"] if tally.known else []
        parts += [f"not stored: {count} ({reason})" for reason, count in not_stored]
        parts += [f"uploads refused: {outcome.refused} ({safe_text(outcome.refusal)})"] if outcome.refused else []
        yield f"{system_id}: {', '.join(parts) if outcome.ingested or outcome.refused else 'nothing new'}"


def _check(settings: Settings, systems: Collection[str]) -> None:
    if not settings.cloud_configured:
        raise SettingsError(
            "there is no bucket to read uploads from",
            hint="set akosha_cloud_bucket and akosha_cloud_endpoint to the values of the machines that upload, "
            "or akosha_cloud_endpoint to file:///a/directory",
        )
    try:
        for system_id in systems:
            check_system_id(system_id)
    except NamingError as error:
        raise SettingsError(f"--system: {error.message}", hint=error.hint) from error


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    try:
        with home.lock(REACT):
            yield
    except AlreadyRunning as error:
        hint = f"stop that process first; {SEPARATE_STATE_DIRS}"
        raise AlreadyRunning(error.message, pid=error.pid, command=error.command, hint=hint) from error
