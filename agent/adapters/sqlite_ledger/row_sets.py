"""The tables of row sets: which rows of each database a target has, as hashes, and the upload that has them all.

A change of a row set writes the chunks that differ. It is staged under the ID of an upload, and applied in the
transaction that records the upload. Runs on the ledger's thread, in a transaction of the caller.
"""

import sqlite3
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from agent.adapters import row_set_file
from agent.adapters.row_set_file import Chunk
from agent.adapters.sqlite_ledger import rows, schema
from agent.domain.delivery_state import Intent, Target
from agent.domain.manifest import Manifest

UNUSED = timedelta(days=30)
"""Row sets of a former target, another bucket for example, are kept this long: 16 bytes a row."""

_CURRENT = ""
"""The `upload_id` of the set of the rows that the target has."""

_REMOVED = b""


class RowSets:
    """Reads and writes row sets and base uploads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def write_file(self, target: Target, database: str, file: Path) -> bool:
        """Write the set of the rows that the target has to a file; return False if there is none."""
        current = self._number(target, database, _CURRENT)
        if current is None:
            return False
        row_set_file.write(file, self._origin(current), self._chunks(current))
        return True

    def replace(self, target: Target, database: str, file: Path) -> None:
        """Record that the target has the rows in the file, and no others."""
        changes = self._changes(target, database, file)
        self._apply(self._create(target, database, _CURRENT), row_set_file.read_origin(file), changes)

    def stage(self, target: Target, upload_id: str, database: str, file: Path) -> None:
        """Record the rows that the target has once the upload is delivered. Staging again replaces them."""
        self._delete(target, database, upload_id)
        staged = self._create(target, database, upload_id)
        self._set_origin(staged, row_set_file.read_origin(file))
        for chunk in self._changes(target, database, file):
            self._put(staged, chunk)

    def drop(self, target: Target, upload_id: str) -> None:
        """Delete what is staged for an upload that was not delivered."""
        self._connection.execute(
            "DELETE FROM row_sets WHERE target_id = ? AND upload_id = ? AND upload_id <> ?",
            (target.id, upload_id, _CURRENT),
        )

    def drop_all(self, target: Target) -> None:
        """Delete what is staged for any upload."""
        self._connection.execute("DELETE FROM row_sets WHERE target_id = ? AND upload_id <> ?", (target.id, _CURRENT))

    def settle(self, target: Target, manifest: Manifest, intent: Intent | None) -> None:
        """Record that the upload is in the bucket. If it is the one of `intent`, its staged rows are delivered.

        It becomes the base of these databases if it can be that. Otherwise a new ledger has adopted the upload and does
        not know its rows: the upload becomes no base.
        """
        if intent is not None and intent.upload_id == manifest.upload_id:
            staged = self._connection.execute(
                "SELECT number, database FROM row_sets WHERE target_id = ? AND upload_id = ?",
                (target.id, manifest.upload_id),
            )
            for number, database in staged.fetchall():
                if database not in manifest.base_of:
                    continue
                current = self._create(target, database, _CURRENT)
                self._apply(current, self._origin(number), self._chunks(number))
                self._connection.execute(
                    "INSERT OR REPLACE INTO memory_bases VALUES (?, ?, ?)", (target.id, database, manifest.upload_id)
                )
        self.drop_all(target)

    def bases(self, target: Target) -> dict[str, str]:
        """Return each database's base: the last upload whose rows are known."""
        if schema.version(self._connection) < schema.ROW_SETS:
            return {}
        found = self._connection.execute(
            "SELECT database, upload_id FROM memory_bases WHERE target_id = ? ORDER BY database", (target.id,)
        )
        return dict(found.fetchall())

    def forget(self, target: Target, databases: Collection[str]) -> None:
        """Delete everything stored about these databases."""
        for table in ("row_sets", "memory_bases"):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE target_id = ? AND database = ?",  # noqa: S608 - one of two names
                [(target.id, database) for database in databases],
            )

    def drop_unused(self, now: datetime) -> None:
        """Delete the row sets and bases of targets that another target of their method has replaced for UNUSED.

        What was delivered to them stays recorded: if such a target comes back, its next upload has no base.
        """
        found = self._connection.execute("SELECT id, method, last_success FROM targets WHERE last_success IS NOT NULL")
        succeeded = [(target, method, rows.read_time(at)) for target, method, at in found]
        newest = {method: at for _, method, at in sorted(succeeded, key=lambda one: one[2])}
        unused = [(target,) for target, method, at in succeeded if at < min(newest[method], now) - UNUSED]
        for table in ("row_sets", "memory_bases"):
            self._connection.executemany(f"DELETE FROM {table} WHERE target_id = ?", unused)  # noqa: S608 - two names

    def _changes(self, target: Target, database: str, file: Path) -> Iterator[Chunk]:
        """Yield the chunks of the file that differ from the current set; empty ones for those that the file lacks."""
        current = self._number(target, database, _CURRENT)
        gone = set() if current is None else set(self._chunk_numbers(current))
        for chunk in row_set_file.read(file):
            if current is None or chunk.number not in gone or self._chunk(current, chunk.number) != chunk:
                yield chunk
            gone.discard(chunk.number)
        for number in gone:
            yield Chunk(number, stored=False, hashes=_REMOVED)

    def _apply(self, row_set: int, origin: bytes, changes: Iterator[Chunk]) -> None:
        self._set_origin(row_set, origin)
        for chunk in changes:
            if chunk.hashes == _REMOVED:
                self._connection.execute(
                    "DELETE FROM row_hashes WHERE row_set = ? AND chunk = ?", (row_set, chunk.number)
                )
            else:
                self._put(row_set, chunk)

    def _put(self, row_set: int, chunk: Chunk) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO row_hashes VALUES (?, ?, ?, ?)", (row_set, chunk.number, chunk.stored, chunk.hashes)
        )

    def _chunks(self, row_set: int) -> Iterator[Chunk]:
        return (self._chunk(row_set, number) for number in self._chunk_numbers(row_set))

    def _chunk_numbers(self, row_set: int) -> list[int]:
        found = self._connection.execute("SELECT chunk FROM row_hashes WHERE row_set = ? ORDER BY chunk", (row_set,))
        return [number for (number,) in found]

    def _chunk(self, row_set: int, number: int) -> Chunk:
        stored, hashes = self._connection.execute(
            "SELECT stored, hashes FROM row_hashes WHERE row_set = ? AND chunk = ?", (row_set, number)
        ).fetchone()
        return Chunk(number, bool(stored), bytes(hashes))

    def _origin(self, row_set: int) -> bytes:
        (origin,) = self._connection.execute("SELECT origin FROM row_sets WHERE number = ?", (row_set,)).fetchone()
        return bytes(origin)

    def _set_origin(self, row_set: int, origin: bytes) -> None:
        self._connection.execute("UPDATE row_sets SET origin = ? WHERE number = ?", (origin, row_set))

    def _create(self, target: Target, database: str, upload_id: str) -> int:
        number = self._number(target, database, upload_id)
        if number is None:
            (number,) = self._connection.execute(
                "INSERT INTO row_sets (target_id, database, upload_id, origin) VALUES (?, ?, ?, ?) RETURNING number",
                (target.id, database, upload_id, row_set_file.NO_ORIGIN),
            ).fetchone()
        return int(number)

    def _number(self, target: Target, database: str, upload_id: str) -> int | None:
        found = self._connection.execute(
            "SELECT number FROM row_sets WHERE target_id = ? AND database = ? AND upload_id = ?",
            (target.id, database, upload_id),
        ).fetchone()
        return int(found[0]) if found else None

    def _delete(self, target: Target, database: str, upload_id: str) -> None:
        self._connection.execute(
            "DELETE FROM row_sets WHERE target_id = ? AND database = ? AND upload_id = ?",
            (target.id, database, upload_id),
        )
