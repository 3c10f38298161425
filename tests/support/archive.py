"""An upload with real objects in an in-memory store, and ways to damage it."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.domain.manifest import Manifest, manifest_metadata
from agent.ports import ObjectStore
from tests.support.memory_store import MemoryStore

Objects = Mapping[str, tuple[bytes, Mapping[str, str]]]


async def objects_in(bucket: Path) -> Objects:
    """Return the objects in a directory store: key -> bytes and metadata."""
    store, found = DirectoryStore(bucket), {}
    async for item in store.list(""):
        data = await asyncio.to_thread((bucket / item.key).read_bytes)
        found[item.key] = data, dict((await store.head(item.key)).metadata)
    return found


def memory_store(objects: Objects) -> MemoryStore:
    store = MemoryStore()
    store.objects = {key: (data, dict(metadata)) for key, (data, metadata) in objects.items()}
    return store


async def put(store: ObjectStore, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield data

    await store.put(key, body(), metadata=metadata, part_bytes=5 * 2**20, progress=lambda _: None)


def flip_bit(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


@dataclass(frozen=True)
class StoredUpload:
    """One upload in an in-memory store."""

    store: MemoryStore
    manifest: Manifest

    @property
    def upload(self) -> str:
        return self.manifest.upload_id

    def key(self, name: str) -> str:
        return self.manifest.key.removesuffix("manifest.json") + name

    def data(self, name: str) -> bytes:
        return self.store.objects[self.key(name)][0]

    def change(self, name: str, data: bytes) -> None:
        """Replace an object's bytes and keep its metadata, like a damaged disk."""
        self.store.objects[self.key(name)] = data, self.store.objects[self.key(name)][1]

    def change_manifest(self, **changes: object) -> None:
        """Change fields of the manifest; the document stays valid."""
        document = json.loads(self.data("manifest.json")) | changes
        self.write(json.dumps(document).encode())

    def write(self, data: bytes) -> None:
        self.store.objects[self.manifest.key] = data, manifest_metadata(data)

    def change_part(self, file: str, **changes: object) -> None:
        """Change fields of a part in the manifest."""
        document = json.loads(self.data("manifest.json"))
        next(part for part in document["parts"] if part["name"] == file).update(changes)
        self.write(json.dumps(document).encode())

    def rewrite(self, name: str, raw: bytes, *, packed: bytes | None = None, raw_size: int | None = None) -> None:
        """Replace a part's file and make the manifest match it, except for `raw_size` if it is given."""
        packed = gzip.compress(raw) if packed is None else packed
        digest = hashlib.sha256(raw).hexdigest()
        parts = [
            replace(
                part,
                raw_size=len(raw) if raw_size is None else raw_size,
                stored_size=len(packed),
                sha256=digest,
            )
            if part.name == name
            else part
            for part in self.manifest.parts
        ]
        changed = replace(self.manifest, parts=tuple(parts))
        part = next(part for part in changed.parts if part.name == name)
        self.store.objects[part.key] = packed, part.objects[0].metadata
        self.write(changed.encode())
