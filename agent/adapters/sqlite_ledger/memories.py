"""The tables of memories: which row a target has in which state, in a few dozen bytes each, for millions of rows.

Only targets to which single memories are sent are in it. `Memories` runs on the ledger's thread in a transaction of the
caller; `SqliteMemories` runs each call in a transaction.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from agent.adapters.sqlite_ledger import rows, schema
from agent.adapters.sqlite_ledger.row_sets import RowSets
from agent.adapters.sqlite_ledger.targets import Targets
from agent.adapters.sqlite_ledger.transactions import Transactions
from agent.domain import transitions
from agent.domain.delivery_state import Target
from agent.domain.memories import Kind, RowState
from agent.ports import HeldMemory, MemoryCounts

Group = tuple[str, Kind]
Row = tuple[int, bytes, bytes]
"""The number of a group (column `place`), a row's own ID, its digest."""

HeldState = Literal["waiting", "refused"]
HELD: Mapping[HeldState, int] = {state: number for number, state in enumerate(get_args(HeldState), 1)}
"""Values of the column `held`; NULL is delivered."""

_IDS_PER_QUERY = 512
"""A power of two, and less than the limit of every SQLite."""


class Memories:
    """Reads and writes the table of memories."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def groups(self, target: Target) -> dict[Group, int]:
        """Return the group number of each database and kind, sorted by database and kind."""
        if schema.version(self._connection) < schema.MEMORIES:
            return {}
        found = self._connection.execute(
            "SELECT database, kind, number FROM memory_places WHERE target_id = ? ORDER BY database, kind", (target.id,)
        )
        return {(database, rows.read_kind(kind)): number for database, kind, number in found}

    def grouped(self, target: Target, batch: Iterable[RowState]) -> list[Row]:
        """Return the table rows of a batch, in its order; create a group for a new combination of database and kind."""
        groups = self.groups(target)
        grouped: list[Row] = []
        for seen in batch:
            group = groups.get((seen.database, seen.kind))
            if group is None:
                group = groups[seen.database, seen.kind] = self._create_group(target, seen)
            grouped.append((group, rows.id_bytes(seen.id), bytes.fromhex(seen.digest)))
        return grouped

    def lacking(self, target: Target, page: Sequence[RowState]) -> list[RowState]:
        """Return the rows that are neither delivered nor refused with the same digest."""
        groups = self.groups(target)
        wanted: defaultdict[int, list[bytes]] = defaultdict(list)
        for seen in page:
            group = groups.get((seen.database, seen.kind))
            if group is not None:
                wanted[group].append(rows.id_bytes(seen.id))
        settled = {
            (group, row_id): digest
            for group, ids in wanted.items()
            for row_id, digest, held in self._found(group, ids)
            if held != HELD["waiting"]
        }

        def is_settled(seen: RowState) -> bool:
            digest = settled.get((groups.get((seen.database, seen.kind), 0), rows.id_bytes(seen.id)))
            return digest is not None and digest == bytes.fromhex(seen.digest)

        return [seen for seen in page if not is_settled(seen)]

    def deliver(self, target: Target, batch: Collection[RowState]) -> None:
        """Record that the target has these rows; they are no longer held."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO memories (place, id, digest) VALUES (?, ?, ?)", sorted(self.grouped(target, batch))
        )

    def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        """Record that the target does not have these rows; return how many were not held with this digest before.

        Of rows that share an ID, one was held: then none of them counts.
        """
        entries = sorted(held, key=lambda entry: entry.row.key)
        grouped = self.grouped(target, (entry.row for entry in entries))
        ids: defaultdict[int, list[bytes]] = defaultdict(list)
        for group, row_id, _ in grouped:
            ids[group].append(row_id)
        before = {
            (group, row_id, digest)
            for group, wanted in ids.items()
            for row_id, digest, was_held in self._found(group, wanted)
            if was_held is not None
        }
        self._connection.executemany(
            "INSERT INTO memories (place, id, digest, held, embedded, reason, since) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (place, id) DO UPDATE SET since = CASE"
            " WHEN held IS NOT NULL AND digest = excluded.digest THEN since ELSE excluded.since END,"
            " digest = excluded.digest, held = excluded.held, embedded = excluded.embedded, reason = excluded.reason"
            " WHERE held IS NOT excluded.held OR digest <> excluded.digest OR reason <> excluded.reason",
            (
                (*row, HELD[entry.state], entry.row.embedded, rows.plain(entry.reason), rows.microseconds(entry.since))
                for row, entry in zip(grouped, entries, strict=True)
            ),
        )
        same = {row[:2] for row in grouped if row in before}
        return len({row for row in grouped if row[:2] not in same})

    def release(self, target: Target, database: str, present: Container[tuple[str, Kind, str]]) -> None:
        """Delete the held rows of a database that are no longer in it (`present`)."""
        for (name, kind), group in self.groups(target).items():
            if name != database:
                continue
            held = self._connection.execute("SELECT id FROM memories WHERE place = ? AND held IS NOT NULL", (group,))
            gone = [(group, row_id) for (row_id,) in held if (database, kind, rows.read_id(row_id)) not in present]
            self._connection.executemany("DELETE FROM memories WHERE place = ? AND id = ?", gone)

    def counts(self, target: Target) -> MemoryCounts:
        delivered = 0
        held: dict[HeldState, dict[str, int]] = {state: {} for state in HELD}
        for group in self.groups(target).values():
            (count,) = self._connection.execute("SELECT COUNT(*) FROM memories WHERE place = ?", (group,)).fetchone()
            delivered += count
            for state, counts in held.items():
                found = self._connection.execute(
                    "SELECT reason, COUNT(*) FROM memories WHERE place = ? AND held = ? GROUP BY reason",
                    (group, HELD[state]),
                )
                for reason, count in found:
                    delivered -= count
                    counts[reason] = counts.get(reason, 0) + count
        return MemoryCounts(delivered=delivered, **held)

    def held(self, target: Target, limit: int) -> list[HeldMemory]:
        """Return the first `limit` held rows, the refused ones before the waiting ones."""
        groups = self.groups(target)
        states: tuple[HeldState, ...] = ("refused", "waiting")
        return list(islice((held for state in states for held in self._held(groups, state, limit)), max(limit, 0)))

    def held_keys(self, target: Target, database: str, limit: int) -> list[tuple[Kind, str]]:
        """Return kind and ID of the first `limit` held rows of a database."""
        keys: list[tuple[Kind, str]] = []
        for (name, kind), group in self.groups(target).items():
            if name == database:
                found = self._connection.execute(
                    "SELECT id FROM memories WHERE place = ? AND held IS NOT NULL LIMIT ?", (group, limit - len(keys))
                )
                keys += [(kind, rows.read_id(row_id)) for (row_id,) in found]
        return keys

    def update_version(self, target: Target, version: str) -> frozenset[str]:
        """Store the server's version. If it has changed, refused rows become waiting.

        Return the databases with waiting rows in that case.
        """
        before = self._connection.execute(
            "SELECT version FROM memory_versions WHERE target_id = ?", (target.id,)
        ).fetchone()
        stored = rows.plain(version)
        if before == (stored,):
            return frozenset()
        self._connection.execute("INSERT OR REPLACE INTO memory_versions VALUES (?, ?)", (target.id, stored))
        return frozenset() if before is None else self._retry_refused(target)

    def forget(self, target: Target, databases: Collection[str]) -> None:
        """Delete all rows of these databases."""
        for (database, _), group in self.groups(target).items():
            if database in databases:
                self._connection.execute("DELETE FROM memories WHERE place = ?", (group,))

    def _create_group(self, target: Target, seen: RowState) -> int:
        (number,) = self._connection.execute(
            "INSERT INTO memory_places (target_id, database, kind) VALUES (?, ?, ?) RETURNING number",
            (target.id, seen.database, seen.kind),
        ).fetchone()
        return int(number)

    def _found(self, group: int, ids: list[bytes]) -> Iterator[tuple[bytes, bytes, int | None]]:
        """Yield ID, digest and `held` of the rows that are in the table."""
        for start in range(0, len(ids), _IDS_PER_QUERY):
            some = ids[start : start + _IDS_PER_QUERY]
            # Pad to a power of two by repeating an ID, which changes nothing: sqlite3 caches 128 prepared statements,
            # and one for each number of IDs would take 10 MB.
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            marks = ", ".join("?" * len(some))
            query = f"SELECT id, digest, held FROM memories WHERE place = ? AND id IN ({marks})"  # noqa: S608 - marks
            yield from self._connection.execute(query, (group, *some))

    def _held(self, groups: Mapping[Group, int], state: HeldState, limit: int) -> Iterator[HeldMemory]:
        for (database, kind), group in groups.items():
            found = self._connection.execute(
                "SELECT id, digest, embedded, reason, since FROM memories WHERE place = ? AND held = ?"
                " ORDER BY reason, id LIMIT ?",
                (group, HELD[state], limit),
            )
            for row_id, digest, embedded, reason, since in found:
                seen = RowState(
                    database=database,
                    kind=kind,
                    id=rows.read_id(row_id),
                    digest=digest.hex(),
                    embedded=bool(embedded),
                )
                yield HeldMemory(row=seen, state=state, reason=reason, since=rows.read_microseconds(since))

    def _retry_refused(self, target: Target) -> frozenset[str]:
        databases: set[str] = set()
        for (database, _), group in self.groups(target).items():
            self._connection.execute(
                "UPDATE memories SET held = ? WHERE place = ? AND held = ?", (HELD["waiting"], group, HELD["refused"])
            )
            waiting = self._connection.execute(
                "SELECT 1 FROM memories WHERE place = ? AND held = ? LIMIT 1", (group, HELD["waiting"])
            )
            if waiting.fetchone():
                databases.add(database)
        return frozenset(databases)


class SqliteMemories:
    """`agent.ports.MemoryLedger`. A file of a version without memories, opened for reading, counts as empty."""

    def __init__(self, transactions: Transactions, connection: sqlite3.Connection) -> None:
        self._transactions, self._targets = transactions, Targets(connection)
        self._memories = Memories(connection)
        self._row_sets = RowSets(connection)

    async def lacking(self, target: Target, page: Sequence[RowState]) -> Sequence[RowState]:
        return await self._transactions.read(lambda: self._memories.lacking(target, page))

    async def delivered(self, target: Target, batch: Collection[RowState]) -> None:
        await self._transactions.write(lambda: self._memories.deliver(target, batch))

    async def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        return await self._transactions.write(lambda: self._memories.hold(target, held))

    async def release(self, target: Target, database: str, present: Container[tuple[str, Kind, str]]) -> None:
        await self._transactions.write(lambda: self._memories.release(target, database, present))

    async def counts(self, target: Target) -> MemoryCounts:
        return await self._transactions.read(lambda: self._memories.counts(target))

    async def held(self, target: Target, *, limit: int) -> Sequence[HeldMemory]:
        return await self._transactions.read(lambda: self._memories.held(target, limit))

    async def update_version(self, target: Target, version: str) -> frozenset[str]:
        """Implement the port. The returned databases become owed in the same transaction, so that a kill loses none."""

        def store_version() -> frozenset[str]:
            to_retry = self._memories.update_version(target, version)
            before = self._targets.load(target)
            self._targets.save(before, transitions.retry_now(before, to_retry & before.databases.keys()))
            return to_retry

        return await self._transactions.write(store_version)

    async def held_keys(self, target: Target, database: str, *, limit: int) -> Sequence[tuple[Kind, str]]:
        return await self._transactions.read(lambda: self._memories.held_keys(target, database, limit))

    async def known_rows(self, target: Target, database: str, file: Path) -> bool:
        return await self._transactions.read(lambda: self._row_sets.write_file(target, database, file))

    async def set_rows(self, target: Target, database: str, file: Path) -> None:
        await self._transactions.write(lambda: self._row_sets.replace(target, database, file))

    async def stage(self, target: Target, upload_id: str, database: str, file: Path) -> None:
        await self._transactions.write(lambda: self._row_sets.stage(target, upload_id, database, file))

    async def unstage(self, target: Target) -> None:
        await self._transactions.write(lambda: self._row_sets.drop_all(target))

    async def bases(self, target: Target) -> Mapping[str, str]:
        return await self._transactions.read(lambda: self._row_sets.bases(target))
