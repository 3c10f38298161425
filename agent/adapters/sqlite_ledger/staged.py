"""What is in an upload's memories.json, until the upload is known as delivered; and which upload was the last.

Runs on the ledger's thread; the transaction is the caller's.
"""

import sqlite3
from collections.abc import Collection

from agent.adapters.sqlite_ledger import schema
from agent.adapters.sqlite_ledger.memories import Memories
from agent.domain.delivery_state import Intent, Target
from agent.domain.manifest import Manifest
from agent.domain.memories import Seen


class Staged:
    """Reads and writes what is staged, and the bases."""

    def __init__(self, connection: sqlite3.Connection, memories: Memories) -> None:
        self._connection, self._memories = connection, memories

    def add(self, target: Target, upload_id: str, batch: Collection[Seen]) -> None:
        """These are in the upload. Of a row that is staged twice, the later one counts."""
        upload = self._number(target, upload_id)
        if upload is None:
            (upload,) = self._connection.execute(
                "INSERT INTO staged_uploads (target_id, upload_id) VALUES (?, ?) RETURNING number",
                (target.id, upload_id),
            ).fetchone()
        self._connection.executemany(
            "INSERT INTO staged_memories VALUES (?, ?, ?, ?)",
            ((upload, *row) for row in self._memories.placed(target, batch)),
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
        for (database, _), place in self._memories.places(target).items():
            if database in databases:
                self._connection.execute("DELETE FROM staged_memories WHERE place = ?", (place,))
        self._connection.executemany(
            "DELETE FROM memory_bases WHERE target_id = ? AND database = ?",
            [(target.id, database) for database in databases],
        )

    def _take_over(self, target: Target, upload_id: str, databases: Collection[str]) -> None:
        upload = self._number(target, upload_id)
        for (database, _), place in self._memories.places(target).items():
            if database in databases:
                self._connection.execute(
                    "INSERT OR REPLACE INTO memories (place, id, digest) SELECT place, id, digest FROM staged_memories"
                    " WHERE upload = ? AND place = ? ORDER BY id, rowid",
                    (upload, place),
                )

    def _number(self, target: Target, upload_id: str) -> int | None:
        found = self._connection.execute(
            "SELECT number FROM staged_uploads WHERE target_id = ? AND upload_id = ?", (target.id, upload_id)
        ).fetchone()
        return int(found[0]) if found else None

    def _drop(self, upload: int) -> None:
        self._connection.execute("DELETE FROM staged_memories WHERE upload = ?", (upload,))
        self._connection.execute("DELETE FROM staged_uploads WHERE number = ?", (upload,))
