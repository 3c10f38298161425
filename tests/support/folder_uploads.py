"""Creates uploads directly from files, without an agent, for tests of restore."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.domain import naming
from agent.domain.databases import database_of
from agent.domain.manifest import Manifest, manifest_metadata
from agent.domain.upload_parts import Part
from agent.ports import ObjectStore, ignore_progress

SYSTEM = "laptop"
UPLOAD = f"20261120_180000_{SYSTEM}"


async def uploaded(
    store: ObjectStore,
    data: Path,
    upload: str = UPLOAD,
    *,
    rows: Mapping[str, Mapping[str, int]] | None = None,
    unverified: Mapping[str, str] | None = None,
    gzip: bool = True,
    **part_fields: object,
) -> Manifest:
    """Upload the files in a folder, manifest last. `unverified`: database -> why it was not verified."""
    compressor = GzipMembers(member_bytes=2**20) if gzip else Uncompressed()
    system = upload.split("_", 2)[2]
    parts = []
    for path in sorted(data.iterdir()):
        raw = path.read_bytes()
        database = database_of(path.name)
        part = Part(
            database=database,
            name=path.name,
            key=naming.object_key(system, upload, naming.object_name(path.name)),
            raw_size=len(raw),
            stored_size=0,
            sha256=hashlib.sha256(raw).hexdigest(),
            compression=compressor.compression,
            origin="sent",
            verified=database not in (unverified or {}),
            unverified_reason=(unverified or {}).get(database, ""),
        )
        stored = b"".join([piece async for piece in compressor.stream(path)])
        await put(store, part.key, stored, part.objects[0].metadata)
        parts.append(replace(part, stored_size=len(stored), **part_fields))
    at = naming.upload_time(upload)
    manifest = Manifest(
        system_id=system,
        upload_id=upload,
        uploaded_at=at + timedelta(seconds=3),
        request_id="request",
        agent_id="0" * 32,
        triggered_by="manual",
        parts=tuple(parts),
        rows=rows or {},
    )
    await publish(store, manifest)
    return manifest


async def publish(store: ObjectStore, manifest: Manifest) -> None:
    """Put the manifest; replace an existing one."""
    data = manifest.encode()
    await put(store, manifest.key, data, manifest_metadata(data))


async def forge(store: ObjectStore, manifest: Manifest, **fields: object) -> None:
    """Change fields of the manifest's first part, to invalid values, too."""
    document = json.loads(manifest.encode())
    document["parts"][0] |= fields
    await put(store, manifest.key, json.dumps(document).encode(), {})


async def put(store: ObjectStore, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
    async def body():
        yield data

    await store.put(key, body(), metadata=metadata, part_bytes=5 * 2**20, progress=ignore_progress)
