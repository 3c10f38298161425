"""How everything stands: what `status` and the coding assistant's status tool show, gathered once for both.

An agent that runs says it itself. Where none does, or it does not say, the ledger and the files do.
"""

import asyncio
from dataclasses import asdict, dataclass, replace

import structlog

from agent.application.monitoring.state_disk import disk_warning
from agent.application.monitoring.status import Status, describe
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


@dataclass(frozen=True, slots=True)
class StatusSources:
    """What of the settings belongs to how everything stands."""

    sync_enabled: bool
    data_dir: str
    state_dir: str

    @classmethod
    def of(cls, settings: Settings) -> "StatusSources":
        return cls(settings.sync_enabled, str(settings.agent_data_dir), str(settings.agent_state_dir))


@dataclass(frozen=True, slots=True)
class StatusView:
    """The status; who holds the state directory (`pid`, `command`, `since`); why the databases cannot be seen.

    `ground` is there where an agent has said all this: it may have other settings. `silent`: there is one, and it does
    not answer.
    """

    status: Status
    running: dict[str, object] | None
    problem: str
    ground: StatusSources | None = None
    silent: bool = False

    def document(self, settings: Settings) -> dict[str, object]:
        """Return what `status --json` prints; times are still times."""
        around = {"running": self.running, "problem": self.problem}
        return asdict(self.status) | around | asdict(self.ground or StatusSources.of(settings))

    def silence(self) -> str:
        """Return what there is to say of an agent that is silent, "" where none is."""
        if not (self.silent and self.running):
            return ""
        who = f"process {self.running.get('pid')} ({self.running.get('command')})"
        return f"{who} is there, but does not answer: this is what its ledger says"


async def gather_status(settings: Settings) -> StatusView:
    """Ask the agent if one runs; else look at the ledger, if there is one, the files, and who is at work.

    Raises StateError. An agent that says nothing costs three seconds.
    """
    home = Home.of(settings)
    await asyncio.to_thread(home.prepare)
    holder = await asyncio.to_thread(home.holder)
    if holder is None or holder.command != RUN:
        return await _seen(home)
    from agent.entrypoints.control_client import Endpoint, NoAnswer  # noqa: PLC0415 - it makes Views

    silent = False
    try:
        if client := await Endpoint(home).client():
            async with client:
                return await client.status()
    except NoAnswer as error:
        silent = error.silent
        _log.debug("agent_unheard", error=str(error))
    view = await _seen(home)
    if not silent:
        return view
    warning = await asyncio.to_thread(silence_of, home, holder.pid, holder.command)
    return replace(view, silent=True, status=replace(view.status, warnings=(warning, *view.status.warnings)))


def silence_of(home: Home, pid: int, command: str) -> StatusWarning:
    """Return what is the matter with a holder of the state directory that does not answer. Blocks for moments."""
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


async def _seen(home: Home) -> StatusView:
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
    holder = await asyncio.to_thread(home.holder)
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
        running=holder is not None and holder.command == RUN,
        warnings=(*((full,) if full else ()), *await _computed(home, identity), *await home.unattended()),
        default_system_id=identity.is_default,
    )
    running = None if holder is None else {"pid": holder.pid, "command": holder.command, "since": str(holder.since)}
    return StatusView(status, running, problem)


async def _computed(home: Home, identity: Identity) -> tuple[StatusWarning, ...]:
    """Return what a look at the target's directory says; a bucket is not asked for a status."""
    if home.settings.directory is None:
        return ()
    store = object_store(home.settings)
    try:
        async with home.ownership(identity, store) as ownership:
            return await ownership.warnings()
    finally:
        await store.aclose()
