"""From settings to what deletes old uploads."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner, spared_by
from agent.application.archive.prune_loop import PruneLoop
from agent.application.sync.results import ResultRecorder
from agent.bootstrap.archive import archive_of, ownership_of
from agent.bootstrap.methods import cloud_of, targets_of
from agent.domain.identity import Identity
from agent.domain.owner import Machine
from agent.domain.retention import KeepRules
from agent.domain.routing import CLOUD
from agent.ports import Clock, Ledger, SyncMethod
from agent.settings import Settings


def keep_rules(settings: Settings) -> KeepRules:
    """Return how many uploads of which kind are kept."""
    return KeepRules(
        last=settings.agent_keep_last,
        daily=settings.agent_keep_daily,
        weekly=settings.agent_keep_weekly,
        monthly=settings.agent_keep_monthly,
    )


def prune_rounds(
    settings: Settings,
    identity: Identity,
    methods: Mapping[str, SyncMethod],
    ledger: Ledger,
    recorder: ResultRecorder,
    clock: Clock,
) -> PruneLoop | None:
    """Return what prunes after uploads, in the store that they go to; None where that is switched off, or none go."""
    cloud = cloud_of(methods)
    if not settings.agent_prune or cloud is None:
        return None
    archive = Catalog(cloud.store, identity.system_id, standstill_seconds=settings.upload_timeout_seconds)
    return PruneLoop(
        Pruner(archive, keep_rules(settings), clock, cloud.ownership.check),
        target=cloud.target,
        identity=identity,
        ledger=ledger,
        recorder=recorder,
        clock=clock,
    )


@dataclass(frozen=True, slots=True)
class PruneHere:
    """A prune that somebody asks for: in the bucket of the settings, sparing what this machine's ledger names."""

    pruning: Pruner
    spared: Mapping[str, str]


@asynccontextmanager
async def prune_here(
    settings: Settings,
    identity: Identity,
    machine: Machine,
    rules: KeepRules,
    clock: Clock,
    ledger: Ledger | None,
) -> AsyncIterator[PruneHere]:
    """Open the bucket for as long as the block runs. Raises SettingsError where there is none, StateError.

    `ledger` is open for reading, None where there is none yet. Only this agent's uploads are pruned (NotOwner).
    """
    async with archive_of(settings, identity.system_id) as archive:
        spared: dict[str, str] = {}
        if ledger is not None:
            spared = spared_by(await ledger.record(targets_of(settings, identity.system_id)[CLOUD]))
        ownership = ownership_of(settings, identity, machine, archive.store, ledger, clock, keeps_warning=False)
        yield PruneHere(Pruner(archive, rules, clock, ownership.check), spared)
