"""Builds the archive: the catalog of uploads, their verification and pruning."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from agent.adapters.state_directory import StateDirectory
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner, spared_now
from agent.application.archive.prune_loop import PruneLoop
from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.application.triggers.publisher import Publisher
from agent.bootstrap.methods import cloud_of
from agent.bootstrap.stores import object_store, ownership_of, targets_of
from agent.domain.delivery_state import Target
from agent.domain.errors import SettingsError
from agent.domain.identity import Identity, Machine
from agent.domain.retention import KeepRules
from agent.domain.routing import CLOUD, RETRY
from agent.ports import Clock, Ledger, SyncMethod
from agent.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from agent.adapters.duckdb.verification import Verdict
    from agent.application.archive.verify import Verifier
    from agent.application.archive.verify_loop import OpenVerifier, VerifyLoop

VERIFYING = "verifying"
"""Directory in the state directory for the files of a deep verification."""

READ_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 4e6
"""Time limit for reading a complete database: `READ_SECONDS` plus the time for its size at this rate."""


@asynccontextmanager
async def open_archive(settings: Settings, system_id: str) -> AsyncIterator[Catalog]:
    """Open the archive of a system until the block ends. Raises SettingsError if no bucket is set."""
    if not settings.cloud_configured:
        raise SettingsError(
            "no bucket is set",
            hint="set akosha_cloud_bucket and akosha_cloud_endpoint, or akosha_cloud_endpoint to file:///a/directory",
        )
    store = object_store(settings)
    try:
        yield Catalog(store, system_id, standstill_seconds=settings.upload_timeout_seconds)
    finally:
        await store.aclose()


def verifier_opener(
    settings: Settings, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> Callable[[], AbstractAsyncContextManager["Verifier"]] | None:
    """Return a function that opens a verifier of this agent's uploads, None if automatic verification is disabled.

    The function raises NotOwner if the target does not belong to this agent (any more): objects that are missing there
    are not damage.
    """
    if not (settings.agent_verify_hours and settings.cloud_configured):
        return None

    @asynccontextmanager
    async def open_verifier() -> AsyncIterator["Verifier"]:
        from agent.application.archive.verify import Verifier  # noqa: PLC0415 - a single sync verifies nothing

        async with _own_archive(settings, identity, machine, ledger, clock) as archive:
            yield Verifier(archive, clock)

    return open_verifier


def deep_verifier_opener(
    settings: Settings, state: StateDirectory, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> Callable[[], AbstractAsyncContextManager["Verifier"]] | None:
    """Return a function that opens a deep verifier, None if it is disabled. The function raises NotOwner."""
    if not settings.agent_deep_verify_mb or verifier_opener(settings, identity, machine, ledger, clock) is None:
        return None

    @asynccontextmanager
    async def open_verifier() -> AsyncIterator["Verifier"]:
        async with (
            _own_archive(settings, identity, machine, ledger, clock) as archive,
            open_deep_verifier(archive, state, clock) as verifier,
        ):
            yield verifier

    return open_verifier


@asynccontextmanager
async def _own_archive(
    settings: Settings, identity: Identity, machine: Machine, ledger: Ledger, clock: Clock
) -> AsyncIterator[Catalog]:
    """Open the archive of this agent's uploads. Raises NotOwner, StoreError."""
    async with open_archive(settings, identity.system_id) as archive:
        async with archive.stall_limit():
            await ownership_of(settings, identity, machine, archive.store, ledger, clock).check(uploads=False)
        yield archive


@asynccontextmanager
async def open_deep_verifier(archive: Catalog, state: StateDirectory, clock: Clock) -> AsyncIterator["Verifier"]:
    """Open a verifier that supports deep verification, with its files in the state directory. Raises StateError."""
    from agent.adapters.gunzip import Unpacker  # noqa: PLC0415 - as above
    from agent.adapters.memories_file import JsonMemoriesFile  # noqa: PLC0415
    from agent.adapters.patches import ZstdPatcher  # noqa: PLC0415
    from agent.adapters.scratch_directory import scratch  # noqa: PLC0415
    from agent.application.archive.verify import DeepCheckTools, Verifier  # noqa: PLC0415

    async with scratch(state.path / VERIFYING) as directory:
        yield Verifier(
            archive,
            clock,
            DeepCheckTools(
                unpacker=Unpacker(directory),
                patcher=ZstdPatcher(),
                examine=_examine,
                memories_file=JsonMemoriesFile(directory),
            ),
        )


async def _examine(copy: "Path") -> "Verdict":
    from agent.adapters.duckdb.verification import verify  # noqa: PLC0415 - as above

    size = sum(path.stat().st_size for path in copy.parent.iterdir())
    return await verify(copy, timeout_seconds=READ_SECONDS + size / SLOWEST_BYTES_PER_SECOND)


def keep_rules(settings: Settings) -> KeepRules:
    """Return the retention rules of the settings."""
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
    """Build the loop that prunes after uploads; None if pruning is disabled, or there is no cloud method."""
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
    """A requested prune: the pruner, and what it spares because the ledger refers to it."""

    pruner: Pruner
    _target: Target
    _ledger: Ledger | None

    async def spared(self) -> Mapping[str, str]:
        """Return the uploads to spare, as the ledger is now: read it again after a plan. Raises StateError."""
        return await spared_now(self._ledger, self._target) if self._ledger is not None else {}

    async def open_puts(self) -> frozenset[str]:
        """Return the IDs of the open puts, as the ledger is now. Raises StateError."""
        puts = await self._ledger.open_puts(self._target) if self._ledger is not None else ()
        return frozenset(put.put_id for put in puts)


@asynccontextmanager
async def open_prune(
    settings: Settings,
    identity: Identity,
    machine: Machine,
    rules: KeepRules,
    clock: Clock,
    ledger: Ledger | None,
) -> AsyncIterator[PruneJob]:
    """Open the bucket for a prune until the block ends. Raises SettingsError if no bucket is set, StateError.

    `ledger` is open for reading, None if it does not exist yet. The pruner raises NotOwner for uploads of others.
    """
    async with open_archive(settings, identity.system_id) as archive:
        ownership = ownership_of(settings, identity, machine, archive.store, ledger, clock, keeps_warning=False)
        target = targets_of(settings, identity.system_id)[CLOUD]
        yield PruneJob(Pruner(archive, rules, clock, ownership.check), target, ledger)


def build_verify_loop(
    settings: Settings,
    identity: Identity,
    recorder: ResultRecorder,
    publisher: Publisher,
    sync_lock: asyncio.Lock,
    *,
    open_verifier: "OpenVerifier",
    open_deep_verifier: "OpenVerifier | None",
    target: Target,
) -> "VerifyLoop":
    """Return the loop that verifies the uploads of the target. `open_deep_verifier`: None if none is verified deep."""
    from agent.application.archive.target_check import TargetCheck  # noqa: PLC0415
    from agent.application.archive.verify_loop import DeepVerifier, VerifyLoop, VerifyReporter  # noqa: PLC0415

    ledger, clock = publisher.ledger, publisher.clock
    reporter = VerifyReporter(identity, ledger, recorder, clock)

    async def sync_again() -> None:
        await publisher.trigger(RETRY)

    return VerifyLoop(
        open_verifier=open_verifier,
        reporter=reporter,
        target=target,
        ledger=ledger,
        clock=clock,
        taker=publisher.taker,
        sync_lock=sync_lock,
        every=timedelta(hours=settings.agent_verify_hours),
        rescan_seconds=settings.agent_rescan_seconds,
        sync_again=sync_again,
        signal=Signal(clock, "verify"),
        target_check=TargetCheck(open_verifier, target, ledger, clock),
        deep=None
        if open_deep_verifier is None
        else DeepVerifier(
            open_verifier=open_deep_verifier,
            reporter=reporter,
            ledger=ledger,
            clock=clock,
            most_bytes=settings.agent_deep_verify_mb * 1_000_000,
        ),
    )
