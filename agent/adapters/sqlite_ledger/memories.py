"""Which state of which row a target has, or was kept from it: millions of rows, so each is a few dozen bytes.

Also which of them are in the memories.json of an upload that is not known as delivered yet, and which upload was a
target's last. Tables run on the ledger's thread, in a transaction of the caller's; `SqliteMemories` makes one of each
call.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, get_args

from agent.adapters.sqlite_ledger import rows, schema
from agent.adapters.sqlite_ledger.targets import Targets
from agent.adapters.sqlite_ledger.transactions import Transactions
from agent.domain import transitions
from agent.domain.delivery_state import Intent, Target
from agent.domain.manifest import Manifest
from agent.domain.memories import Kind, RowState
from agent.ports import HeldMemory, MemoryCounts

Group = tuple[str, Kind]
Row = tuple[int, bytes, bytes]
"""The number of a group (column `place`), a row's own id, its digest."""

HeldState = Literal["waiting", "refused"]
HELD: Mapping[HeldState, int] = {state: number for number, state in enumerate(get_args(HeldState), 1)}
"""How the column `held` has it; NULL is delivered."""

_AT_ONCE = 512
"""Ids in one question: below what every SQLite takes, and a power of two."""


class Memories:
    """Reads and writes what is known of memories."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def groups(self, target: Target) -> dict[Group, int]:
        """Return the numbers under which the rows of each database and kind are kept, in the order of their names."""
        if schema.version(self._connection) < schema.MEMORIES:
            return {}
        found = self._connection.execute(
            "SELECT database, kind, number FROM memory_places WHERE target_id = ? ORDER BY database, kind", (target.id,)
        )
        return {(database, rows.read_kind(kind)): number for database, kind, number in found}

    def grouped(self, target: Target, batch: Iterable[RowState]) -> list[Row]:
        """Return rows as they are kept, in that order; a new combination of database and kind gets a group."""
        groups = self.groups(target)
        grouped: list[Row] = []
        for seen in batch:
            group = groups.get((seen.database, seen.kind))
            if group is None:
                group = groups[seen.database, seen.kind] = self._make_group(target, seen)
            grouped.append((group, rows.id_bytes(seen.id), bytes.fromhex(seen.digest)))
        return grouped

    def lacking(self, target: Target, page: Sequence[RowState]) -> list[RowState]:
        """Return those that are neither delivered nor refused as they are."""
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
        """The target has these; nothing of them is held any more."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO memories (place, id, digest) VALUES (?, ?, ?)", sorted(self.grouped(target, batch))
        )

    def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        """The target does not have these; return how many of them were not held as they are before."""
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
        return len({*grouped} - before)

    def release(self, target: Target, database: str, there: Container[tuple[str, Kind, str]]) -> None:
        """Forget what is held of the database's rows that are not `there` any more."""
        for (name, kind), group in self.groups(target).items():
            if name != database:
                continue
            held = self._connection.execute("SELECT id FROM memories WHERE place = ? AND held IS NOT NULL", (group,))
            gone = [(group, row_id) for (row_id,) in held if (database, kind, rows.read_id(row_id)) not in there]
            self._connection.executemany("DELETE FROM memories WHERE place = ? AND id = ?", gone)

    def counts(self, target: Target) -> MemoryCounts:
        """Count them."""
        delivered = 0
        kept_back: dict[HeldState, dict[str, int]] = {state: {} for state in HELD}
        for group in self.groups(target).values():
            (count,) = self._connection.execute("SELECT COUNT(*) FROM memories WHERE place = ?", (group,)).fetchone()
            delivered += count
            for state, counts in kept_back.items():
                found = self._connection.execute(
                    "SELECT reason, COUNT(*) FROM memories WHERE place = ? AND held = ? GROUP BY reason",
                    (group, HELD[state]),
                )
                for reason, count in found:
                    delivered -= count
                    counts[reason] = counts.get(reason, 0) + count
        return MemoryCounts(delivered=delivered, **kept_back)

    def held(self, target: Target, limit: int) -> list[HeldMemory]:
        """Return the first that are held, the refused ones before those that wait."""
        groups = self.groups(target)
        states: tuple[HeldState, ...] = ("refused", "waiting")
        return list(islice((held for state in states for held in self._held(groups, state, limit)), max(limit, 0)))

    def update_version(self, target: Target, version: str) -> frozenset[str]:
        """Remember the version. Another one than before: what it refused waits now; return what is held back where."""
        before = self._connection.execute(
            "SELECT version FROM memory_versions WHERE target_id = ?", (target.id,)
        ).fetchone()
        met = rows.plain(version)
        if before == (met,):
            return frozenset()
        self._connection.execute("INSERT OR REPLACE INTO memory_versions VALUES (?, ?)", (target.id, met))
        return frozenset() if before is None else self._try_again(target)

    def forget(self, target: Target, databases: Collection[str]) -> None:
        """Nothing is known of the rows of these databases any more."""
        for (database, _), group in self.groups(target).items():
            if database in databases:
                self._connection.execute("DELETE FROM memories WHERE place = ?", (group,))

    def _make_group(self, target: Target, seen: RowState) -> int:
        (number,) = self._connection.execute(
            "INSERT INTO memory_places (target_id, database, kind) VALUES (?, ?, ?) RETURNING number",
            (target.id, seen.database, seen.kind),
        ).fetchone()
        return int(number)

    def _found(self, group: int, ids: list[bytes]) -> Iterator[tuple[bytes, bytes, int | None]]:
        """Yield id, digest and `held` of those of the rows that are known."""
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            # sqlite3 keeps 128 prepared questions: with one for each number of ids that is 10 MB. Asking for an id
            # twice changes nothing.
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            marks = ", ".join("?" * len(some))
            question = f"SELECT id, digest, held FROM memories WHERE place = ? AND id IN ({marks})"  # noqa: S608 - marks
            yield from self._connection.execute(question, (group, *some))

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

    def _try_again(self, target: Target) -> frozenset[str]:
        worth_a_look: set[str] = set()
        for (database, _), group in self.groups(target).items():
            self._connection.execute(
                "UPDATE memories SET held = ? WHERE place = ? AND held = ?", (HELD["waiting"], group, HELD["refused"])
            )
            waits = self._connection.execute(
                "SELECT 1 FROM memories WHERE place = ? AND held = ? LIMIT 1", (group, HELD["waiting"])
            )
            if waits.fetchone():
                worth_a_look.add(database)
        return frozenset(worth_a_look)


class Staged:
    """Reads and writes what is staged, and the bases."""

    def __init__(self, connection: sqlite3.Connection, memories: Memories) -> None:
        self._connection, self._memories = connection, memories

    def add(self, target: Target, upload_id: str, batch: Collection[RowState]) -> None:
        """These are in the upload. Of a row that is staged twice, the later one counts."""
        upload = self._number(target, upload_id)
        if upload is None:
            (upload,) = self._connection.execute(
                "INSERT INTO staged_uploads (target_id, upload_id) VALUES (?, ?) RETURNING number",
                (target.id, upload_id),
            ).fetchone()
        self._connection.executemany(
            "INSERT INTO staged_memories VALUES (?, ?, ?, ?)",
            ((upload, *row) for row in self._memories.grouped(target, batch)),
        )

    def drop(self, target: Target, upload_id: str) -> None:
        """Nothing was delivered of this upload."""
        upload = self._number(target, upload_id)
        if upload is not None:
            self._drop(upload)

    def drop_all(self, target: Target) -> None:
        """Nothing was delivered of any upload that is staged."""
        found = self._connection.execute("SELECT number FROM staged_uploads WHERE target_id = ?", (target.id,))
        for (upload,) in found.fetchall():
            self._drop(upload)

    def settle(self, target: Target, manifest: Manifest, intent: Intent | None) -> None:
        """The upload is in the bucket. Where it is the one that this ledger knew to be under way, the target has it.

        Of another's upload (adopted by a ledger that was lost) the digests are not known: no base follows from it.
        """
        held = manifest.memories
        if held is not None and intent is not None and intent.upload_id == manifest.upload_id:
            self._take_over(target, manifest.upload_id, held.bases.keys())
            self._connection.executemany(
                "INSERT OR REPLACE INTO memory_bases VALUES (?, ?, ?)",
                [(target.id, database, manifest.upload_id) for database in held.bases],
            )
        self.drop_all(target)

    def bases(self, target: Target) -> dict[str, str]:
        """Return, per database, the last upload that had its rows."""
        if schema.version(self._connection) < schema.MEMORIES:
            return {}
        found = self._connection.execute(
            "SELECT database, upload_id FROM memory_bases WHERE target_id = ? ORDER BY database", (target.id,)
        )
        return dict(found.fetchall())

    def forget(self, target: Target, databases: Collection[str]) -> None:
        """All of these databases is new again: nothing was delivered, nothing is staged, they have no base."""
        self._memories.forget(target, databases)
        for (database, _), group in self._memories.groups(target).items():
            if database in databases:
                self._connection.execute("DELETE FROM staged_memories WHERE place = ?", (group,))
        self._connection.executemany(
            "DELETE FROM memory_bases WHERE target_id = ? AND database = ?",
            [(target.id, database) for database in databases],
        )

    def _take_over(self, target: Target, upload_id: str, databases: Collection[str]) -> None:
        upload = self._number(target, upload_id)
        for (database, _), group in self._memories.groups(target).items():
            if database in databases:
                self._connection.execute(
                    "INSERT OR REPLACE INTO memories (place, id, digest) SELECT place, id, digest FROM staged_memories"
                    " WHERE upload = ? AND place = ? ORDER BY id, rowid",
                    (upload, group),
                )

    def _number(self, target: Target, upload_id: str) -> int | None:
        found = self._connection.execute(
            "SELECT number FROM staged_uploads WHERE target_id = ? AND upload_id = ?", (target.id, upload_id)
        ).fetchone()
        return int(found[0]) if found else None

    def _drop(self, upload: int) -> None:
        self._connection.execute("DELETE FROM staged_memories WHERE upload = ?", (upload,))
        self._connection.execute("DELETE FROM staged_uploads WHERE number = ?", (upload,))


class SqliteMemories:
    """The port's promises. Of a file of a version without memories, opened for reading, it says that there are none."""

    def __init__(self, transactions: Transactions, connection: sqlite3.Connection) -> None:
        self._transactions, self._targets = transactions, Targets(connection)
        self._memories = Memories(connection)
        self._staged = Staged(connection, self._memories)

    async def lacking(self, target: Target, page: Sequence[RowState]) -> Sequence[RowState]:
        return await self._transactions.read(lambda: self._memories.lacking(target, page))

    async def delivered(self, target: Target, batch: Collection[RowState]) -> None:
        await self._transactions.write(lambda: self._memories.deliver(target, batch))

    async def hold(self, target: Target, held: Collection[HeldMemory]) -> int:
        return await self._transactions.write(lambda: self._memories.hold(target, held))

    async def release(self, target: Target, database: str, there: Container[tuple[str, Kind, str]]) -> None:
        await self._transactions.write(lambda: self._memories.release(target, database, there))

    async def counts(self, target: Target) -> MemoryCounts:
        return await self._transactions.read(lambda: self._memories.counts(target))

    async def held(self, target: Target, *, limit: int) -> Sequence[HeldMemory]:
        return await self._transactions.read(lambda: self._memories.held(target, limit))

    async def update_version(self, target: Target, version: str) -> frozenset[str]:
        """As the port says. What is worth another look is owed from the same moment on, so that no kill forgets it."""

        def met() -> frozenset[str]:
            again = self._memories.update_version(target, version)
            before = self._targets.load(target)
            self._targets.save(before, transitions.retry_now(before, again & before.databases.keys()))
            return again

        return await self._transactions.write(met)

    async def stage(self, target: Target, upload_id: str, batch: Collection[RowState]) -> None:
        await self._transactions.write(lambda: self._staged.add(target, upload_id, batch))

    async def unstage(self, target: Target) -> None:
        await self._transactions.write(lambda: self._staged.drop_all(target))

    async def bases(self, target: Target) -> Mapping[str, str]:
        return await self._transactions.read(lambda: self._staged.bases(target))
