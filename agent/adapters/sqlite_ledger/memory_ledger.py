"""The part of the ledger that remembers memories: the same file, the same thread, one transaction for each entry."""

import sqlite3
from collections.abc import Collection, Container, Mapping, Sequence

from agent.adapters.sqlite_ledger.memories import Memories
from agent.adapters.sqlite_ledger.staged import Staged
from agent.adapters.sqlite_ledger.targets import Targets
from agent.adapters.sqlite_ledger.transactions import Transactions
from agent.domain import transitions
from agent.domain.delivery_state import Target
from agent.domain.memories import Kind, Seen
from agent.ports import Held, MemoryCounts


class SqliteMemories:
    """The port's promises. Of a file of a version without memories, opened for reading, it says that there are none."""

    def __init__(self, transactions: Transactions, connection: sqlite3.Connection) -> None:
        self._transactions, self._targets = transactions, Targets(connection)
        self._memories = Memories(connection)
        self._staged = Staged(connection, self._memories)

    async def lacking(self, target: Target, page: Sequence[Seen]) -> Sequence[Seen]:
        return await self._transactions.read(lambda: self._memories.lacking(target, page))

    async def delivered(self, target: Target, batch: Collection[Seen]) -> None:
        await self._transactions.write(lambda: self._memories.deliver(target, batch))

    async def hold(self, target: Target, held: Collection[Held]) -> int:
        return await self._transactions.write(lambda: self._memories.hold(target, held))

    async def release(self, target: Target, database: str, there: Container[tuple[str, Kind, str]]) -> None:
        await self._transactions.write(lambda: self._memories.release(target, database, there))

    async def counts(self, target: Target) -> MemoryCounts:
        return await self._transactions.read(lambda: self._memories.counts(target))

    async def held(self, target: Target, *, limit: int) -> Sequence[Held]:
        return await self._transactions.read(lambda: self._memories.held(target, limit))

    async def meet(self, target: Target, version: str) -> frozenset[str]:
        """As the port says. What is worth another look is owed from the same moment on, so that no kill forgets it."""

        def met() -> frozenset[str]:
            again = self._memories.meet(target, version)
            before = self._targets.load(target)
            self._targets.save(before, transitions.look_again(before, again & before.databases.keys()))
            return again

        return await self._transactions.write(met)

    async def stage(self, target: Target, upload_id: str, batch: Collection[Seen]) -> None:
        await self._transactions.write(lambda: self._staged.add(target, upload_id, batch))

    async def unstage(self, target: Target) -> None:
        await self._transactions.write(lambda: self._staged.drop_all(target))

    async def bases(self, target: Target) -> Mapping[str, str]:
        return await self._transactions.read(lambda: self._staged.bases(target))
