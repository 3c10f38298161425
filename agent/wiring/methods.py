"""From settings to the methods: what delivers, and what it is made of."""

from datetime import tzinfo

from agent.adapters.akosha_mcp import AkoshaSink
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb_files import DuckdbMemoryReader
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.adapters.local_zone import local_zone
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.s3_store import S3Store
from agent.adapters.state_directory import StateDirectory
from agent.application.cloud_sync import CloudSync
from agent.application.http_sync import HttpSync
from agent.application.memory_delta import MemoryDelta
from agent.application.memory_push import MemoryPush
from agent.domain.identity import Identity
from agent.domain.route import CLOUD, HTTP
from agent.domain.states import Target
from agent.ports import Clock, Ledger, MemoryReader, ObjectStore, SnapshotTaker, SyncMethod
from agent.settings import Settings

MEBIBYTE = 2**20


def targets_of(settings: Settings, system_id: str) -> dict[str, Target]:
    """Return the targets of all methods that can be asked for, by method: the cloud only where it is set up."""
    targets = {HTTP: Target(HTTP, settings.http_endpoint, "", system_id)}
    if settings.cloud_configured:
        cloud = Target(CLOUD, settings.cloud_endpoint, settings.cloud_bucket, system_id)
        return {CLOUD: cloud, **targets}
    return targets


def object_store(settings: Settings) -> ObjectStore:
    """Return the bucket, or the directory in its place."""
    if settings.directory is not None:
        return DirectoryStore(settings.directory / settings.cloud_bucket)
    return S3Store(bucket=settings.cloud_bucket, endpoint=settings.cloud_endpoint, region=settings.cloud_region)


def memory_push(settings: Settings, ledger: Ledger, clock: Clock) -> MemoryPush:
    """Return what takes memories to the Akosha server of the settings; its sink is the caller's to close."""
    return MemoryPush(
        sink=AkoshaSink(
            endpoint=settings.http_endpoint,
            token=settings.http_token.get_secret_value(),
            timeout_seconds=settings.upload_timeout_seconds,
        ),
        ledger=ledger.memories(),
        clock=clock,
        batch_size=settings.http_batch_size,
        missing_embedding=settings.http_missing_embedding,
    )


def sync_methods(
    settings: Settings, state: StateDirectory, identity: Identity, taker: SnapshotTaker, ledger: Ledger, clock: Clock
) -> dict[str, SyncMethod]:
    """Return the methods by name, those of the targets."""
    targets, reader = targets_of(settings, identity.system_id), DuckdbMemoryReader()
    methods: dict[str, SyncMethod] = {
        HTTP: HttpSync(
            target=targets[HTTP],
            push=memory_push(settings, ledger, clock),
            taker=taker,
            reader=reader,
            ledger=ledger,
            clock=clock,
            zone=_zone,
            standstill_seconds=settings.upload_timeout_seconds,
        )
    }
    if CLOUD in targets:
        methods[CLOUD] = _cloud(settings, targets[CLOUD], state, identity, taker, reader, ledger, clock)
    return methods


def _cloud(
    settings: Settings,
    target: Target,
    state: StateDirectory,
    identity: Identity,
    taker: SnapshotTaker,
    reader: MemoryReader,
    ledger: Ledger,
    clock: Clock,
) -> CloudSync:
    return CloudSync(
        target=target,
        identity=identity,
        store=object_store(settings),
        taker=taker,
        compressor=GzipMembers() if settings.enable_compression else Uncompressed(),
        delta=MemoryDelta(
            target=target,
            reader=reader,
            memories=ledger.memories(),
            file=JsonMemoriesFile(state.staging),
            zone=_zone,
        ),
        ledger=ledger,
        clock=clock,
        chunk_bytes=settings.chunk_size_mb * MEBIBYTE,
        deduplicate=settings.enable_deduplication,
        ingestion_markers=settings.ingestion_markers,
        standstill_seconds=settings.upload_timeout_seconds,
    )


def _zone() -> tzinfo:
    zone, _name = local_zone()
    return zone
