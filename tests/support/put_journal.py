"""An in-memory PutJournal, which survives what a test does to the put."""

import asyncio
from dataclasses import replace

from agent.ports import OpenPut, PutPart


class MemoryJournal:
    """`put` is the recorded open put. `calls` names the writes in order."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.put: OpenPut | None = None
        self.calls: list[str] = []
        self._changed = asyncio.Condition()

    async def load(self) -> OpenPut | None:
        return self.put

    async def begin(self, put_id: str, parameters: str) -> None:
        await self._write("begin", OpenPut(self.key, put_id, parameters))

    async def add(self, part: PutPart) -> None:
        assert self.put is not None
        await self._write("add", replace(self.put, parts={**self.put.parts, part.number: part}))

    async def clear(self) -> None:
        await self._write("clear", None)

    async def wait_for(self, parts: int) -> None:
        """Wait until so many parts are recorded."""
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(lambda: self.put is not None and len(self.put.parts) >= parts)

    async def _write(self, call: str, put: OpenPut | None) -> None:
        self.calls.append(call)
        async with self._changed:
            self.put = put
            self._changed.notify_all()
