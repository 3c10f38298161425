"""An in-memory ObjectStore, which passes the contract suite of the real stores."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping
from dataclasses import replace
from datetime import datetime

from agent.domain.errors import CopyUnsupported, NoSuchObject
from agent.ports import Creation, OpenPut, Progress, PutJournal, StoredObject, ignore_progress, is_changed


class MemoryStore:
    """`objects`: key -> (bytes, metadata). `available` is the result of `is_available`."""

    def __init__(self, location: str = "memory://") -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.available = True
        self._location = location

    @property
    def location(self) -> str:
        return self._location

    async def is_available(self) -> bool:
        return self.available

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
        kept: Progress = ignore_progress,
        journal: PutJournal | None = None,
    ) -> StoredObject:
        data = bytearray()
        async for piece in body:
            data += piece
            progress(len(piece))
        self.objects[key] = bytes(data), dict(metadata)
        return StoredObject(key, len(data), dict(metadata), etag=_etag(data))

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        if replace:
            self.objects[key] = data, {}
            return Creation.UNPROVEN
        if key in self.objects:
            return Creation.EXISTS
        self.objects[key] = data, {}
        return Creation.CREATED

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        found = await self.head(source)
        wanted = (expected.size, dict(expected.metadata))
        if (found.size, found.metadata) != wanted or is_changed(expected.etag, found.etag):
            raise CopyUnsupported(f"{source!r} is not the expected object")
        self.objects[key] = self.objects[source]
        return StoredObject(key, found.size, found.metadata, etag=found.etag)

    async def head(self, key: str) -> StoredObject:
        data, metadata = self._object(key)
        return StoredObject(key, len(data), dict(metadata), etag=_etag(data))

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        return await self.head(key)

    async def get(self, key: str) -> AsyncGenerator[bytes, None]:
        data, _ = self._object(key)
        for start in range(0, len(data), 2**16):
            yield data[start : start + 2**16]

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after and key in self.objects:
                data = self.objects[key][0]
                yield StoredObject(key, len(data), etag=_etag(data))

    async def folders(self, prefix: str, *, start: str = "") -> AsyncGenerator[str, None]:
        rests = (key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))
        for name in sorted({f"{rest.partition('/')[0]}/" for rest in rests if "/" in rest}):
            if name != "/" and name > start:
                yield name.removesuffix("/")

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    async def discard(self, put: OpenPut) -> None:
        pass

    async def sweep(self, prefix: str, *, started_before: datetime | None = None, spared: Collection[str] = ()) -> int:
        return 0

    async def separate_copies(self, prefix: str, *, progress: Progress = ignore_progress) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def _object(self, key: str) -> tuple[bytes, dict[str, str]]:
        try:
            return self.objects[key]
        except KeyError:
            raise NoSuchObject(f"{key!r} does not exist in {self._location}") from None


class DatedStore(MemoryStore):
    """A MemoryStore whose listing has modification times; `times`: key prefix -> time."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, datetime] = {}

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        async for item in super().list(prefix, start_after=start_after):
            at = next((time for start, time in self.times.items() if item.key.startswith(start)), None)
            yield replace(item, modified=at)


def _etag(data: bytes | bytearray) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
