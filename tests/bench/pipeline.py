"""An upload by the cloud method: snapshot (not verified), hash, compress, send, manifest."""

import gzip
import hashlib
import uuid
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbSnapshotTaker, MirrorDirectory
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.memories.delta import MemoryDelta
from agent.application.sync.cloud import CloudSync
from agent.application.sync.patching import Patching
from agent.domain.delivery_state import Target
from agent.domain.events import SyncRequested
from agent.domain.identity import Identity, Machine
from agent.domain.manifest import Manifest
from agent.domain.routing import CLOUD, MANUAL
from agent.ports import Delivered, ObjectStore

PART_BYTES = 5 * 2**20
SYSTEM = "bench"


class ByteCounter:
    """A Reporter that counts the transferred bytes."""

    def __init__(self) -> None:
        self.count = 0

    def phase(self, name: str, total_bytes: int) -> None: ...

    def moved(self, count: int) -> None:
        self.count += count

    def kept(self, count: int) -> None: ...


async def upload(data_dir: Path, state_dir: Path, store: ObjectStore) -> Manifest:
    """Upload all databases in `data_dir`, with an empty ledger. Raises SyncError."""
    state_dir.mkdir(parents=True)
    clock, identity = SystemClock(), Identity(agent_id=uuid.uuid4().hex, system_id=SYSTEM)
    ledger = await SqliteLedger.open(state_dir / "ledger.sqlite3", CloudEventsCodec(), clock=clock)
    try:
        target = Target(CLOUD, store.location, "bench", SYSTEM)
        method = CloudSync(
            target=target,
            identity=identity,
            store=store,
            taker=DuckdbSnapshotTaker(data_dir, state_dir / "staging", clock=clock, verify=False),
            compressor=GzipMembers(),
            uncompressed=Uncompressed(),
            patching=Patching(MirrorDirectory(state_dir / "mirror"), ZstdPatcher()),
            delta=MemoryDelta(
                target=target,
                reader=DuckdbMemoryReader(),
                memories=ledger.memories(),
                file=JsonMemoriesFile(state_dir / "staging"),
                zone=lambda: UTC,
            ),
            ledger=ledger,
            clock=clock,
            machine=Machine.of("bench", data_dir, ""),
            has_state=lambda *_: False,
            chunk_bytes=PART_BYTES,
            deduplicate=True,
            ingestion_markers=False,
            standstill_seconds=300,
        )
        result = await method.sync(_request(identity), ByteCounter())
    finally:
        await ledger.aclose()
    if not isinstance(result, Delivered):
        raise TypeError(f"nothing was uploaded: {result.reason}")
    return result.manifest


def check(bucket: Path, manifest: Manifest, data_dir: Path) -> None:
    """Compare the objects in the directory of the bucket with `data_dir`. Raises RuntimeError if they differ."""
    for part in manifest.parts:
        with gzip.open(bucket / part.key) as stored, (data_dir / part.name).open("rb") as raw:
            digests = {hashlib.file_digest(file, "sha256").hexdigest() for file in (stored, raw)}
        if digests != {part.sha256}:
            raise RuntimeError(f"{part.key} differs from {part.name}")


def _request(identity: Identity) -> SyncRequested:
    name = str(uuid.uuid4())
    return SyncRequested(
        id=f"{name}.{CLOUD}",
        time=datetime.now(UTC),
        system_id=SYSTEM,
        request_id=name,
        agent_id=identity.agent_id,
        reason=MANUAL,
        route=(CLOUD,),
    )
