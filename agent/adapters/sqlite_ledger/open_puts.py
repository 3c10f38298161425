"""The open puts of the uploads in progress: which parts of an object a store has accepted.

`OpenPuts` runs on the ledger's thread in a transaction of the caller; `SqlitePutJournal` runs each call in a
transaction.
"""

import sqlite3

from agent.adapters.sqlite_ledger import rows, schema
from agent.adapters.sqlite_ledger.transactions import Transactions
from agent.domain.delivery_state import Target
from agent.ports import OpenPut, PutPart


class OpenPuts:
    """Reads and writes the open puts."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def of(self, target: Target) -> list[OpenPut]:
        """Return the open puts of a target, by key."""
        if schema.version(self._connection) < schema.OPEN_PUTS:
            return []
        found = self._connection.execute(
            "SELECT number, key, put_id, parameters FROM open_puts WHERE target_id = ? ORDER BY key", (target.id,)
        )
        return [
            OpenPut(key, put_id, parameters, self._parts(number))
            for number, key, put_id, parameters in found.fetchall()
        ]

    def begin(self, target: Target, put: OpenPut) -> None:
        """Record a new put without parts, in place of another one of its key."""
        self.drop(target, put.key)
        self._connection.execute(
            "INSERT INTO open_puts (target_id, key, put_id, parameters) VALUES (?, ?, ?, ?)",
            (target.id, put.key, rows.plain(put.put_id), put.parameters),
        )

    def add(self, target: Target, key: str, part: PutPart) -> None:
        """Record a part of the open put of a key, if there is one."""
        self._connection.execute(
            "INSERT OR REPLACE INTO put_parts SELECT number, ?, ?, ?, ? FROM open_puts WHERE target_id = ? AND key = ?",
            (part.number, part.size, part.md5, rows.plain(part.etag), target.id, key),
        )

    def drop(self, target: Target, key: str) -> None:
        """Delete the open put of a key."""
        self._connection.execute("DELETE FROM open_puts WHERE target_id = ? AND key = ?", (target.id, key))

    def drop_all(self, target: Target) -> None:
        """Delete all open puts of a target."""
        self._connection.execute("DELETE FROM open_puts WHERE target_id = ?", (target.id,))

    def _parts(self, put: int) -> dict[int, PutPart]:
        found = self._connection.execute("SELECT number, size, md5, etag FROM put_parts WHERE put = ?", (put,))
        return {number: PutPart(number, *row) for number, *row in found}


class SqlitePutJournal:
    """`agent.ports.PutJournal` of one key."""

    def __init__(self, transactions: Transactions, open_puts: OpenPuts, target: Target, key: str) -> None:
        self._transactions, self._open_puts = transactions, open_puts
        self._target, self._key = target, key

    async def load(self) -> OpenPut | None:
        puts = await self._transactions.read(lambda: self._open_puts.of(self._target))
        return next((put for put in puts if put.key == self._key), None)

    async def begin(self, put_id: str, parameters: str) -> None:
        put = OpenPut(self._key, put_id, parameters)
        await self._transactions.write(lambda: self._open_puts.begin(self._target, put))

    async def add(self, part: PutPart) -> None:
        await self._transactions.write(lambda: self._open_puts.add(self._target, self._key, part))

    async def clear(self) -> None:
        await self._transactions.write(lambda: self._open_puts.drop(self._target, self._key))
