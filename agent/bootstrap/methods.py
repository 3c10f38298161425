"""Builds the sync methods."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import tzinfo
from functools import partial
from pathlib import Path

from agent.adapters.akosha import AkoshaSink
from agent.adapters.duckdb import DuckdbMemoryReader, MirrorDirectory, WarmChild
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.adapters.local_zone import local_zone
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.adapters.state_directory import StateDirectory, belongs_to
from agent.application.memories.delta import MemoryDelta
from agent.application.memories.push import MemoryPush
from agent.application.sync.cloud import CloudSync
from agent.application.sync.http import HttpSync
from agent.application.sync.patching import Patching
from agent.application.sync.stall import StallMonitor
from agent.bootstrap.stores import MEBIBYTE, object_store, targets_of
from agent.domain.delivery_state import Target
from agent.domain.errors import SettingsError
from agent.domain.identity import Identity, Machine
from agent.domain.plain_text import hide
from agent.domain.routing import CLOUD, HTTP
from agent.ports import (
    Clock,
    Connected,
    Ledger,
    MemoryReader,
    ObjectStore,
    RateLimiter,
    SnapshotTaker,
    SyncMethod,
)
from agent.settings import Settings
from agent.settings.own_files import credentials_file, read_credentials

KIBIBYTE = 2**10

BATCH_SIZE = 500
"""Memories per request to the Akosha server, which accepts up to 1,000."""


def memory_push(
    settings: Settings,
    ledger: Ledger,
    clock: Clock,
    *,
    stall_monitor: StallMonitor | None = None,
    rate_limiter: RateLimiter | None = None,
) -> MemoryPush:
    """Return the push to the Akosha server of the settings. The caller closes its sink."""
    stall_monitor = stall_monitor or StallMonitor()
    server = AkoshaSink(
        endpoint=settings.http_endpoint,
        token=settings.http_token.get_secret_value(),
        stored_token=_stored_token,
        timeout_seconds=settings.upload_timeout_seconds,
        rate_limiter=rate_limiter,
        waiting=stall_monitor.restart_limits,
    )
    stall_monitor.register(server)
    return MemoryPush(
        sink=server,
        ledger=ledger.memories(),
        clock=clock,
        batch_size=BATCH_SIZE,
        missing_embedding=settings.http_missing_embedding,
    )


def sync_methods(
    settings: Settings,
    state: StateDirectory,
    identity: Identity,
    taker: SnapshotTaker,
    mirror: MirrorDirectory,
    warm: WarmChild,
    ledger: Ledger,
    clock: Clock,
    machine: Machine,
    stall_monitor: StallMonitor | None = None,
) -> dict[str, SyncMethod]:
    """Return the methods of all targets, by name. The taker's child processes wait in `warm` to read its copies.

    The methods' connections are registered with `stall_monitor`.
    """
    stall_monitor = stall_monitor or StallMonitor()
    rate = settings.agent_max_upload_kib_per_s * KIBIBYTE
    rate_limiter = RateLimiter(rate, clock) if rate else None
    targets, reader = targets_of(settings, identity.system_id), DuckdbMemoryReader(warm=warm)
    methods: dict[str, SyncMethod] = {
        HTTP: HttpSync(
            target=targets[HTTP],
            push=memory_push(settings, ledger, clock, stall_monitor=stall_monitor, rate_limiter=rate_limiter),
            taker=taker,
            reader=reader,
            ledger=ledger,
            clock=clock,
            zone=_zone,
            standstill_seconds=settings.upload_timeout_seconds,
            stall_monitor=stall_monitor,
        )
    }
    if CLOUD in targets:
        store = object_store(settings, rate_limiter)
        if isinstance(store, Connected):
            stall_monitor.register(store)
        methods[CLOUD] = _cloud(
            settings,
            targets[CLOUD],
            state,
            identity,
            store,
            taker,
            mirror,
            reader,
            ledger,
            clock,
            machine,
            stall_monitor,
        )
    return methods


def cloud_of(methods: Mapping[str, SyncMethod]) -> CloudSync | None:
    """Return the cloud method, None if there is none."""
    cloud = methods.get(CLOUD)
    return cloud if isinstance(cloud, CloudSync) else None


def _cloud(
    settings: Settings,
    target: Target,
    state: StateDirectory,
    identity: Identity,
    store: ObjectStore,
    taker: SnapshotTaker,
    mirror: MirrorDirectory,
    reader: MemoryReader,
    ledger: Ledger,
    clock: Clock,
    machine: Machine,
    stall_monitor: StallMonitor,
) -> CloudSync:
    return CloudSync(
        target=target,
        identity=identity,
        store=store,
        taker=taker,
        compressor=GzipMembers() if settings.enable_compression else Uncompressed(),
        uncompressed=Uncompressed(),
        patching=Patching(mirror, ZstdPatcher()),
        delta=MemoryDelta(
            target=target,
            reader=reader,
            memories=ledger.memories(),
            # Akosha's own IngestionWorker, which looks for the markers, reads only uncompressed memories.
            file=JsonMemoriesFile(
                state.staging,
                compression="none" if settings.ingestion_markers else "gzip",
                make_room=partial(mirror.drop_all, "the disk is full"),
            ),
            zone=_zone,
            complete=settings.ingestion_markers,
        ),
        ledger=ledger,
        clock=clock,
        machine=machine,
        has_state=belongs_to,
        chunk_bytes=settings.chunk_size_mb * MEBIBYTE,
        deduplicate=settings.enable_deduplication,
        ingestion_markers=settings.ingestion_markers,
        standstill_seconds=settings.upload_timeout_seconds,
        stall_monitor=stall_monitor,
    )


def _stored_token() -> str:
    """Return the token in `credentials.yaml`, "" if there is none, or the file is refused. Blocks."""
    with suppress(SettingsError):
        stored = read_credentials(credentials_file(os.environ, Path.home()))
        token = stored.values.get("http_token", "") if stored else ""
        hide(token)
        return token
    return ""


def _zone() -> tzinfo:
    zone, _name = local_zone()
    return zone
