"""Creates small complete uploads, as objects or in a store."""

import gzip
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.manifest import Manifest
from agent.domain.upload_parts import MemoriesPart, Part
from agent.ports import ObjectStore
from tests.support import values

DATABASES = ("knowledge_graph", "reflection")


def upload_id(at: datetime, system_id: str = values.SYSTEM) -> str:
    return naming.upload_id(at, system_id)


def days(count: int, system_id: str = values.SYSTEM, *, newest: datetime = values.NOON) -> list[str]:
    """Return the ids of daily uploads, `count` of them, newest first."""
    return [upload_id(newest - timedelta(days=day), system_id) for day in range(count)]


def objects_of(
    upload: str,
    system_id: str = values.SYSTEM,
    *,
    bases: Mapping[str, str | None] | None = None,
    verified: bool = True,
    databases: tuple[str, ...] = DATABASES,
    uploaded_at: datetime | None = None,
) -> dict[str, bytes]:
    """Return the objects of a complete upload: key -> bytes. `bases`: database -> base upload of its memories."""
    objects: dict[str, bytes] = {}
    parts = []
    for database in databases:
        name = main_name(database)
        data = f"{name} of {upload}".encode()
        key = naming.object_key(system_id, upload, name)
        objects[key] = data
        parts.append(
            Part(
                database=database,
                name=name,
                key=key,
                raw_size=len(data),
                stored_size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                compression="none",
                origin="sent",
                verified=verified,
                etag=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            )
        )
    memories = b'{"conversations": []}'
    key = naming.memories_key(system_id, upload, gzipped=True)
    objects[key] = gzip.compress(memories, mtime=0)
    manifest = Manifest(
        system_id=system_id,
        upload_id=upload,
        uploaded_at=uploaded_at or naming.upload_time(upload),
        request_id=f"request of {upload}",
        agent_id="agent-1",
        triggered_by="manual",
        parts=tuple(parts),
        memories=MemoriesPart(
            key=key,
            raw_size=len(memories),
            stored_size=len(objects[key]),
            sha256=hashlib.sha256(memories).hexdigest(),
            compression="gzip",
            count=0,
            bases=dict.fromkeys(databases) | dict(bases or {}),
        ),
    )
    objects[manifest.key] = manifest.encode()
    return objects


async def put(store: ObjectStore, upload: str, system_id: str = values.SYSTEM, **how: object) -> None:
    """Put a complete upload into a store, the manifest last."""
    for key, data in objects_of(upload, system_id, **how).items():
        await put_object(store, key, data)


async def put_object(store: ObjectStore, key: str, data: bytes = b"something") -> None:
    async def body():
        yield data

    await store.put(key, body(), metadata={}, part_bytes=2**23, progress=lambda _: None)


async def uploads_in(store: ObjectStore, system_id: str = values.SYSTEM) -> tuple[list[str], list[str]]:
    """Return the uploads with a manifest and those without, newest first.

    Assert that an upload with a manifest has every object that the manifest names, with its size.
    """
    found: dict[str, dict[str, int]] = {}
    async for item in store.list(naming.uploads_prefix(system_id)):
        found.setdefault(naming.upload_of(item.key), {})[item.key] = item.size
    complete = [upload for upload in found if naming.manifest_key(system_id, upload) in found[upload]]
    for upload in complete:
        data = b"".join([piece async for piece in store.get(naming.manifest_key(system_id, upload))])
        manifest = Manifest.decode(data)
        reported = {each.key: each.stored_size for each in manifest.objects}
        assert reported.items() <= found[upload].items(), f"{upload} has a manifest and is incomplete"
    return sorted(complete, reverse=True), sorted(set(found) - set(complete), reverse=True)
