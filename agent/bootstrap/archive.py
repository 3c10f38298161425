"""From settings to the archive: what uploads there are, and whether they are whole."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.duckdb.verification import Verdict, verify
from agent.adapters.gunzip import Unpacker
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.scratch_directory import scratch
from agent.adapters.state_directory import StateDirectory
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner, spared_by
from agent.application.archive.prune_loop import PruneLoop
from agent.application.archive.verify import DeepCheckTools, Verifier
from agent.application.sync.results import ResultRecorder
from agent.bootstrap.methods import cloud_of
from agent.bootstrap.stores import object_store, ownership_of, targets_of
from agent.domain.errors import SettingsError
from agent.domain.identity import Identity, Machine
from agent.domain.retention import KeepRules
from agent.domain.routing import CLOUD
from agent.ports import Clock, Ledger, SyncMethod
from agent.settings import Settings

VERIFYING = "verifying"
"""Where a deep look has its files, in the state directory."""

READ_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 4e6
"""Time limit for reading a database through: `READ_SECONDS` plus its size at this rate."""


@asynccontextmanager
async def open_archive(settings: Settings, system_id: str) -> AsyncIterator[Catalog]:
    """Open the archive of a system, for as long as the block runs. Raises SettingsError where there is no bucket."""
    if not settings.cloud_configured:
        raise SettingsError(
            "there is no bucket to look into",
            hint="set akosha_cloud_bucket and akosha_cloud_endpoint, or akosha_cloud_endpoint to file:///a/directory",
        )
    store = object_store(settings)
    try:
        yield Catalog(store, system_id, standstill_seconds=settings.upload_timeout_seconds)
    finally:
        await store.aclose()


def verifier_opener(
    settings: Settings, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> Callable[[], AbstractAsyncContextManager[Verifier]] | None:
    """Return what opens a shallow look at this agent's uploads; None where the agent is not to look by itself.

    Opening raises NotOwner where the target is not, or no longer, this agent's: what is missing there is not damage.
    """
    if not (settings.agent_verify_hours and settings.cloud_configured):
        return None

    @asynccontextmanager
    async def open_verifier() -> AsyncIterator[Verifier]:
        async with _own_archive(settings, identity, machine, ledger, clock) as archive:
            yield Verifier(archive, clock)

    return open_verifier


def deep_verifier_opener(
    settings: Settings, state: StateDirectory, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> Callable[[], AbstractAsyncContextManager[Verifier]] | None:
    """Return what opens a deep look; None where the agent is not to look deep by itself. Opening raises NotOwner."""
    if not settings.agent_deep_verify_mb or verifier_opener(settings, identity, machine, ledger, clock) is None:
        return None

    @asynccontextmanager
    async def open_verifier() -> AsyncIterator[Verifier]:
        async with (
            _own_archive(settings, identity, machine, ledger, clock) as archive,
            open_deep_verifier(archive, state, clock) as verification,
        ):
            yield verification

    return open_verifier


@asynccontextmanager
async def _own_archive(
    settings: Settings, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> AsyncIterator[Catalog]:
    """Open the archive of this agent's uploads. Raises NotOwner, StoreError."""
    async with open_archive(settings, identity.system_id) as archive:
        async with archive.moving():
            await ownership_of(settings, identity, machine, archive.store, ledger, clock).check(uploads=False)
        yield archive


@asynccontextmanager
async def open_deep_verifier(archive: Catalog, state: StateDirectory, clock: Clock) -> AsyncIterator[Verifier]:
    """Open what looks at uploads, deep too; its files lie in the state directory. Raises StateError."""
    async with scratch(state.path / VERIFYING) as place:
        yield Verifier(
            archive,
            clock,
            DeepCheckTools(unpacker=Unpacker(place), examine=_examine, memories_file=JsonMemoriesFile(place)),
        )


async def _examine(copy: Path) -> Verdict:
    size = sum(path.stat().st_size for path in copy.parent.iterdir())
    return await verify(copy, timeout_seconds=READ_SECONDS + size / SLOWEST_BYTES_PER_SECOND)


def keep_rules(settings: Settings) -> KeepRules:
    """Return how many uploads of which kind are kept."""
    return KeepRules(
        last=settings.agent_keep_last,
        daily=settings.agent_keep_daily,
        weekly=settings.agent_keep_weekly,
        monthly=settings.agent_keep_monthly,
    )


def build_prune_loop(
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
class PruneJob:
    """A prune that somebody asks for: in the bucket of the settings, sparing what this machine's ledger names."""

    pruning: Pruner
    spared: Mapping[str, str]


@asynccontextmanager
async def open_prune(
    settings: Settings,
    identity: Identity,
    machine: Machine,
    rules: KeepRules,
    clock: Clock,
    ledger: Ledger | None,
) -> AsyncIterator[PruneJob]:
    """Open the bucket for as long as the block runs. Raises SettingsError where there is none, StateError.

    `ledger` is open for reading, None where there is none yet. Only this agent's uploads are pruned (NotOwner).
    """
    async with open_archive(settings, identity.system_id) as archive:
        spared: dict[str, str] = {}
        if ledger is not None:
            spared = spared_by(await ledger.record(targets_of(settings, identity.system_id)[CLOUD]))
        ownership = ownership_of(settings, identity, machine, archive.store, ledger, clock, keeps_warning=False)
        yield PruneJob(Pruner(archive, rules, clock, ownership.check), spared)
