"""An ObjectStore in memory. It passes the contract suite of the real ones."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping
from datetime import datetime

from agent.domain.errors import CopyUnsupported, NoSuchObject
from agent.ports import Creation, Progress, StoredObject, untold


class MemoryStore:
    """`objects`: key -> (bytes, metadata), for tests to look at. `available` is what `is_available` says."""

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
    ) -> StoredObject:
        data = bytearray()
        async for piece in body:
            data += piece
            progress(len(piece))
        self.objects[key] = bytes(data), dict(metadata)
        return StoredObject(key, len(data), dict(metadata))

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        if replace:
            self.objects[key] = data, {}
            return Creation.UNPROVEN
        if key in self.objects:
            return Creation.EXISTS
        self.objects[key] = data, {}
        return Creation.CREATED

    async def copy(self, source: str, key: str, *, expected: StoredObject, progress: Progress = untold) -> StoredObject:
        found = await self.head(source)
        if (found.size, found.metadata) != (expected.size, dict(expected.metadata)):
            raise CopyUnsupported(f"{source!r} is not what is expected")
        self.objects[key] = self.objects[source]
        return StoredObject(key, found.size, found.metadata)

    async def head(self, key: str) -> StoredObject:
        data, metadata = self._object(key)
        return StoredObject(key, len(data), dict(metadata))

    async def get(self, key: str) -> AsyncGenerator[bytes, None]:
        data, _ = self._object(key)
        for start in range(0, len(data), 2**16):
            yield data[start : start + 2**16]

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after and key in self.objects:
                yield StoredObject(key, len(self.objects[key][0]))

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    async def sweep(self, prefix: str, *, begun_before: datetime | None = None) -> int:
        return 0

    async def aclose(self) -> None:
        pass

    def _object(self, key: str) -> tuple[bytes, dict[str, str]]:
        try:
            return self.objects[key]
        except KeyError:
            raise NoSuchObject(f"there is no {key!r} in {self._location}") from None
