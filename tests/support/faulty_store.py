"""A store around a real one that fails, loses answers or stalls at chosen calls.

store.fail("put", StoreError("503", transient=True), key="manifest.json", times=2)
reached = store.stall("copy")
store.fail("put", error, key="manifest.json", after=True)     # done, but the answer is lost
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from agent.ports import Creation, ObjectStore, OpenPut, Progress, PutJournal, StoredObject, ignore_progress

T = TypeVar("T")


@dataclass
class _Fault:
    call: str
    key: str
    error: BaseException | None
    times: int
    after: bool
    reached: asyncio.Event


class FaultyStore:
    """`calls` lists (call, key or prefix) in order. A fault applies to keys that end with its `key`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._faults: list[_Fault] = []
        self.calls: list[tuple[str, str]] = []

    def fail(
        self, call: str, error: BaseException, *, key: str = "", times: int = 1, after: bool = False
    ) -> asyncio.Event:
        """Raise `error` in the next `times` such calls; with `after`, once they are done.

        Return an event that is set when the first of them fails.
        """
        return self._add(_Fault(call, key, error, times, after, asyncio.Event()))

    def stall(self, call: str, *, key: str = "", times: int = 1, after: bool = False) -> asyncio.Event:
        """Never return from the next `times` such calls. Return an event that is set when the first of them stalls."""
        return self._add(_Fault(call, key, None, times, after, asyncio.Event()))

    def keys(self, call: str) -> list[str]:
        """Return the keys of such calls, in order."""
        return [key for name, key in self.calls if name == call]

    @property
    def location(self) -> str:
        return self._store.location

    async def is_available(self) -> bool:
        return await self._do("is_available", "", self._store.is_available)

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
        return await self._do(
            "put",
            key,
            lambda: self._store.put(
                key, body, metadata=metadata, part_bytes=part_bytes, progress=progress, kept=kept, journal=journal
            ),
        )

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        return await self._do("create", key, lambda: self._store.create(key, data, replace=replace))

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        return await self._do("copy", key, lambda: self._store.copy(source, key, expected=expected, progress=progress))

    async def head(self, key: str) -> StoredObject:
        return await self._do("head", key, lambda: self._store.head(key))

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        return await self._do("head", key, lambda: self._store.inspect(key, progress=progress))

    async def get(self, key: str) -> AsyncGenerator[bytes, None]:
        await self._do("get", key, _nothing)
        async for piece in self._store.get(key):
            yield piece

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        await self._do("list", prefix, _nothing)
        async for item in self._store.list(prefix, start_after=start_after):
            yield item

    async def folders(self, prefix: str, *, start: str = "") -> AsyncGenerator[str, None]:
        await self._do("list", prefix, _nothing)
        async for name in self._store.folders(prefix, start=start):
            yield name

    async def delete(self, keys: Collection[str]) -> None:
        await self._do("delete", " ".join(keys), lambda: self._store.delete(keys))

    async def discard(self, put: OpenPut) -> None:
        await self._do("discard", put.key, lambda: self._store.discard(put))

    async def sweep(self, prefix: str, *, started_before: datetime | None = None, spared: Collection[str] = ()) -> int:
        return await self._do(
            "sweep", prefix, lambda: self._store.sweep(prefix, started_before=started_before, spared=spared)
        )

    async def separate_copies(self, prefix: str, *, progress: Progress = ignore_progress) -> None:
        await self._do("separate_copies", prefix, lambda: self._store.separate_copies(prefix, progress=progress))

    async def aclose(self) -> None:
        await self._store.aclose()

    def _add(self, fault: _Fault) -> asyncio.Event:
        self._faults.append(fault)
        return fault.reached

    async def _do(self, call: str, key: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls.append((call, key))
        for fault in self._faults:
            if fault.call == call and fault.times and key.endswith(fault.key):
                fault.times -= 1
                if fault.after:
                    await work()
                fault.reached.set()
                if fault.error is not None:
                    raise fault.error
                await asyncio.Event().wait()
        return await work()


async def _nothing() -> None:
    pass
