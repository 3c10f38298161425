"""`react`: the Akosha side. Every upload in the bucket, into Akosha, until told to stop; or what there is now."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import structlog
import typer

from agent.application.ingest.service import IngestService, IngestSummary
from agent.bootstrap.home import Home
from agent.bootstrap.ingest import reacting
from agent.domain.errors import AkoshaError, AlreadyRunning, NamingError, SettingsError
from agent.domain.naming import check_system_id
from agent.domain.plain_text import from_outside
from agent.entrypoints.shutdown import first_of, on_hangup
from agent.entrypoints.sync_client import APART, REACT
from agent.settings import Settings

_log = structlog.get_logger()


async def react(settings: Settings, *, systems: Collection[str], once: bool) -> int:
    """React until cancelled; `once`: take what there is, say what came of it, return 0 (all taken) or 1.

    Raises SettingsError, StateError.
    """
    _check(settings, systems)
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    with _held(home):
        try:
            async with reacting(home, identity, systems) as reactor:
                if once:
                    return await _once(reactor)
                await _run(reactor)
        except* AkoshaError as group:
            raise first_of(group) from group
        finally:
            _log.info("reactor_stopped", agent_id=identity.agent_id)
    raise AssertionError("the reactor runs until it is cancelled, or fails")


async def _run(reactor: IngestService) -> None:
    """React until cancelled; a SIGHUP has credentials and certificates read again."""
    hung_up = asyncio.Event()
    on_hangup(hung_up.set)

    async def reset() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await reactor.reset_clients()
            _log.info("clients_reset", agent_id=reactor.identity.agent_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(reset(), name="hangup")
        await reactor.run()


async def _once(reactor: IngestService) -> int:
    summary = await reactor.once()
    for text in _told(summary):
        typer.echo(text)
    for system_id, why in sorted(summary.failures.items()):
        typer.echo(f"{system_id}: {why}", err=True)
    return 0 if summary.success else 1


def _told(summary: IngestSummary) -> Iterator[str]:
    if not summary.caught and not summary.failures:
        yield "no system has uploads there"
    for system_id, caught in sorted(summary.caught.items()):
        tally = caught.tally
        told = [f"uploads: {caught.taken}", f"memories stored: {tally.stored}"]
        told += [f"there already: {tally.known}"] if tally.known else []
        told += [f"kept back: {count} ({why})" for why, count in sorted({**tally.waiting, **tally.refused}.items())]
        told += [f"uploads refused: {caught.refused} ({from_outside(caught.why)})"] if caught.refused else []
        yield f"{system_id}: {', '.join(told) if caught.taken or caught.refused else 'nothing new'}"


def _check(settings: Settings, systems: Collection[str]) -> None:
    if not settings.cloud_configured:
        raise SettingsError(
            "there is no bucket to take uploads from",
            hint="set akosha_cloud_bucket and akosha_cloud_endpoint as on the machines that upload, "
            "or akosha_cloud_endpoint to file:///a/directory",
        )
    try:
        for system_id in systems:
            check_system_id(system_id)
    except NamingError as error:
        raise SettingsError(f"--system: {error.message}", hint=error.hint) from error


@contextmanager
def _held(home: Home) -> Iterator[None]:
    try:
        with home.lock(REACT):
            yield
    except AlreadyRunning as error:
        raise AlreadyRunning(
            error.message,
            pid=error.pid,
            command=error.command,
            hint=f"stop that one first; {APART}",
        ) from error
