"""The status: from the running agent, or from the ledger and the files if no agent answers."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import structlog

from agent.application.monitoring.status import describe, disk_warning, last_upload_bytes
from agent.bootstrap.home import RUN, Home
from agent.bootstrap.stores import object_store
from agent.domain.databases import NO_DATABASES, Survey
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import AgentUnavailable, SnapshotError
from agent.domain.identity import Identity
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.control_client import Endpoint
from agent.entrypoints.status_document import StatusDocument, running_process, unresponsive_warning
from agent.ports import MemoryCounts
from agent.settings import Settings

_log = structlog.get_logger()


async def gather_status(settings: Settings) -> StatusDocument:
    """Return the running agent's status, or the status from the ledger and the files if no agent answers.

    Waits up to three seconds for an agent that does not answer; the status then has a warning about it. Raises
    StateError.
    """
    home = Home.of(settings)
    await asyncio.to_thread(home.prepare)
    holder = await asyncio.to_thread(home.holder)
    if holder is None or holder.command != RUN:
        return await _from_ledger(home)
    reason = "it has no control socket"
    try:
        if client := await Endpoint(home).client():
            async with client:
                return await client.status()
    except AgentUnavailable as error:
        reason = "" if error.unresponsive else error.message
        _log.debug("agent_unavailable", error=str(error))
    document = await _from_ledger(home)
    if document.running is None or document.running["pid"] != holder.pid:
        return document  # it has ended meanwhile
    warning = await asyncio.to_thread(
        unresponsive_warning, home, holder.pid, holder.command, since=holder.since, reason=reason
    )
    return replace(document, warnings=(warning, *document.warnings)).judged()


async def _from_ledger(home: Home) -> StatusDocument:
    settings = home.settings
    identity = await asyncio.to_thread(home.prepare)
    possible = home.targets(identity)
    targets = [possible[method] for method in settings.route if method in possible]
    records = [TargetRecord(target) for target in targets]
    memory_counts: dict[str, MemoryCounts] = {}
    notes: dict[str, str] = {}
    last_bytes: Mapping[str, int] = {}
    results_waiting = 0
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            records = [await ledger.record(target) for target in targets]
            memory_counts = {target.method: await ledger.memories().counts(target) for target in targets}
            notes = dict(await ledger.notes())
            last_bytes = await last_upload_bytes(ledger, records, identity.agent_id)
            results_waiting = len(await ledger.outbox())
        finally:
            await ledger.aclose()
    survey: Survey = {}
    problem = ""
    try:
        survey = await home.taker().survey()
        problem = "" if survey else NO_DATABASES
    except SnapshotError as error:
        problem = str(error)
    running = await asyncio.to_thread(running_process, home)
    full = disk_warning(str(settings.agent_state_dir), await home.taker().free_bytes(), records, survey)
    status = describe(
        system_id=identity.system_id,
        agent_id=identity.agent_id,
        route=settings.route,
        records=records,
        memory_counts=memory_counts,
        survey=survey,
        notes=notes,
        results_waiting=results_waiting,
        running=running is not None and running["command"] == RUN,
        warnings=(*((full,) if full else ()), *await _ownership_warnings(home, identity), *await home.waiting_notes()),
        default_system_id=identity.is_default,
        last_bytes=last_bytes,
    )
    return StatusDocument.of(status, settings, running=running, problem=problem)


async def _ownership_warnings(home: Home, identity: Identity) -> tuple[StatusWarning, ...]:
    """Return the warnings about a directory target. A bucket is not contacted for the status."""
    if home.settings.directory is None:
        return ()
    store = object_store(home.settings)
    try:
        async with home.ownership(identity, store) as ownership:
            return await ownership.warnings()
    finally:
        await store.aclose()
