"""The status: what `status`, the control API and the MCP tool show.

A running agent provides it; without one, or where it does not answer, it is made from the ledger and the files.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar, Self

import structlog

from agent.application.monitoring.status import Status, describe, disk_warning
from agent.application.sync.attempt import NO_DATABASES
from agent.bootstrap.home import RUN, Home
from agent.bootstrap.methods import object_store
from agent.domain.databases import Survey
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import SnapshotError
from agent.domain.identity import Identity
from agent.domain.status_warning import StatusWarning
from agent.ports import MemoryCounts
from agent.settings import Settings

AGENT_STOPPED, AGENT_SILENT = "agent_stopped", "agent_silent"
"""Codes of the warnings about an agent that holds the state directory and does not answer."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDocument(Status):
    """The document of `status --json` and `GET /v1/status`; OpenAPI and the MCP tool derive their schemas from it.

    `running` is the process that holds the state directory (`pid`, `command`, `since`); `problem` says why the
    databases cannot be seen. A dataclass, not a pydantic model: without an agent, `status` needs no validation.
    """

    __pydantic_config__: ClassVar[Mapping[str, bool]] = {"json_schema_serialization_defaults_required": True}

    running: dict[str, object] | None
    problem: str
    sync_enabled: bool
    data_dir: str
    state_dir: str

    @classmethod
    def of(cls, status: Status, settings: Settings, *, running: dict[str, object] | None, problem: str) -> Self:
        return cls(
            **{field.name: getattr(status, field.name) for field in fields(status)},
            running=running,
            problem=problem,
            sync_enabled=settings.sync_enabled,
            data_dir=str(settings.agent_data_dir),
            state_dir=str(settings.agent_state_dir),
        )

    def to_dict(self) -> dict[str, object]:
        """Return what `status --json` prints; times are still datetimes."""
        return asdict(self)

    @property
    def unresponsive_agent(self) -> str:
        """What is to be said of an agent that does not answer; "" where there is none."""
        if not self.running or not any(w.code in (AGENT_STOPPED, AGENT_SILENT) for w in self.warnings):
            return ""
        who = f"process {self.running.get('pid')} ({self.running.get('command')})"
        return f"{who} is there, but does not answer: this is what its ledger says"


def running_process(home: Home) -> dict[str, object] | None:
    """Return the process that holds the state directory: `pid`, `command` and `since`. Blocks for moments."""
    holder = home.holder()
    return None if holder is None else {"pid": holder.pid, "command": holder.command, "since": str(holder.since)}


async def gather_status(settings: Settings) -> StatusDocument:
    """Return the running agent's status; without one, that of the ledger and the files.

    Raises StateError. An agent that does not answer costs three seconds.
    """
    home = Home.of(settings)
    await asyncio.to_thread(home.prepare)
    holder = await asyncio.to_thread(home.holder)
    if holder is None or holder.command != RUN:
        return await _from_ledger(home)
    from agent.entrypoints.control_client import AgentUnavailable, Endpoint  # noqa: PLC0415 - it makes StatusDocuments

    unresponsive = False
    try:
        if client := await Endpoint(home).client():
            async with client:
                return await client.status()
    except AgentUnavailable as error:
        unresponsive = error.unresponsive
        _log.debug("agent_unavailable", error=str(error))
    document = await _from_ledger(home)
    if not unresponsive:
        return document
    warning = await asyncio.to_thread(unresponsive_warning, home, holder.pid, holder.command)
    return replace(document, warnings=(warning, *document.warnings))


def unresponsive_warning(home: Home, pid: int, command: str) -> StatusWarning:
    """Return the warning about a process that holds the state directory and does not answer. Blocks for moments."""
    who = f"process {pid} ({command})"
    if home.is_stopped(pid):
        return StatusWarning(
            code=AGENT_STOPPED, message=f"{who} does not answer: it is stopped", hint=f"kill -CONT {pid}"
        )
    return StatusWarning(
        code=AGENT_SILENT,
        message=f"{who} does not answer",
        hint="akosha-agent service restart, or end that process and start akosha-agent run",
    )


async def _from_ledger(home: Home) -> StatusDocument:
    settings = home.settings
    identity = await asyncio.to_thread(home.prepare)
    possible = home.targets(identity)
    targets = [possible[method] for method in settings.route if method in possible]
    records = [TargetRecord(target) for target in targets]
    memory_counts: dict[str, MemoryCounts] = {}
    notes: dict[str, str] = {}
    results_waiting = 0
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            records = [await ledger.record(target) for target in targets]
            memory_counts = {target.method: await ledger.memories().counts(target) for target in targets}
            notes = dict(await ledger.notes())
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
        warnings=(*((full,) if full else ()), *await _ownership_warnings(home, identity), *await home.unattended()),
        default_system_id=identity.is_default,
    )
    return StatusDocument.of(status, settings, running=running, problem=problem)


async def _ownership_warnings(home: Home, identity: Identity) -> tuple[StatusWarning, ...]:
    """Return the warnings about the target's directory; a bucket is not asked for a status."""
    if home.settings.directory is None:
        return ()
    store = object_store(home.settings)
    try:
        async with home.ownership(identity, store) as ownership:
            return await ownership.warnings()
    finally:
        await store.aclose()
