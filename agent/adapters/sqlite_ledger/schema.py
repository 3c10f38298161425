"""The tables and their migrations. `PRAGMA user_version` is the number of migrations that were applied.

Times are ISO texts in UTC of fixed length, so that they sort. Values that are only read as a unit are JSON.
"""

import sqlite3

from agent.domain.errors import StateError

_FIRST = (
    """CREATE TABLE targets (
        id TEXT PRIMARY KEY,
        method TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        bucket TEXT NOT NULL,
        system_id TEXT NOT NULL,
        known INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        attempt_request TEXT NOT NULL,
        failures INTEGER NOT NULL,
        retry_at TEXT,
        error TEXT NOT NULL,
        newest_upload_id TEXT,
        last_success TEXT
    )""",
    """CREATE TABLE databases (
        target_id TEXT NOT NULL REFERENCES targets (id),
        name TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('clean', 'owed', 'intent', 'delivered')),
        fingerprint TEXT,
        parts TEXT NOT NULL,
        rows TEXT NOT NULL,
        problem TEXT,
        delivered_by TEXT NOT NULL,
        PRIMARY KEY (target_id, name)
    )""",
    """CREATE TABLE intents (
        target_id TEXT PRIMARY KEY REFERENCES targets (id),
        request_id TEXT NOT NULL,
        upload_id TEXT NOT NULL,
        digests TEXT NOT NULL,
        databases TEXT NOT NULL
    )""",
    # AUTOINCREMENT: no position is used again after its event was deleted. published_at NULL is the outbox.
    """CREATE TABLE events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        time TEXT NOT NULL,
        result_of TEXT,
        payload BLOB NOT NULL,
        published_at TEXT
    )""",
    "CREATE INDEX events_of_request ON events (result_of) WHERE result_of IS NOT NULL",
    "CREATE INDEX events_in_outbox ON events (position) WHERE published_at IS NULL",
    "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)

# Many rows are kept, so they are small: 16 bytes of a digest for each session end.
_SECOND = ("CREATE TABLE handled (digest BLOB PRIMARY KEY) WITHOUT ROWID",)

# A few dozen bytes per row, for a million rows: `place` is the group number of a target, database and kind; IDs are
# UTF-8; digests have 16 bytes. `held` NULL: delivered; 1: waiting; 2: refused. `since` is in microseconds since 1970.
_THIRD = (
    """CREATE TABLE memory_places (
        number INTEGER PRIMARY KEY,
        target_id TEXT NOT NULL,
        database TEXT NOT NULL,
        kind TEXT NOT NULL,
        UNIQUE (target_id, database, kind)
    )""",
    """CREATE TABLE memories (
        place INTEGER NOT NULL REFERENCES memory_places (number),
        id BLOB NOT NULL,
        digest BLOB NOT NULL,
        held INTEGER CHECK (held IN (1, 2)),
        embedded INTEGER,
        reason TEXT,
        since INTEGER,
        PRIMARY KEY (place, id)
    ) WITHOUT ROWID""",
    "CREATE INDEX memories_held ON memories (place, held, reason) WHERE held IS NOT NULL",
    """CREATE TABLE staged_uploads (
        number INTEGER PRIMARY KEY,
        target_id TEXT NOT NULL,
        upload_id TEXT NOT NULL,
        UNIQUE (target_id, upload_id)
    )""",
    # In order of insertion and without a key, so that a batch changes only a page or two.
    """CREATE TABLE staged_memories (
        upload INTEGER NOT NULL REFERENCES staged_uploads (number),
        place INTEGER NOT NULL REFERENCES memory_places (number),
        id BLOB NOT NULL,
        digest BLOB NOT NULL
    )""",
    """CREATE TABLE memory_bases (
        target_id TEXT NOT NULL,
        database TEXT NOT NULL,
        upload_id TEXT NOT NULL,
        PRIMARY KEY (target_id, database)
    ) WITHOUT ROWID""",
    "CREATE TABLE memory_versions (target_id TEXT PRIMARY KEY, version TEXT NOT NULL) WITHOUT ROWID",
)

# Session ends that no result has answered yet, in order of arrival.
_FOURTH = ("CREATE TABLE open_ends (position INTEGER PRIMARY KEY, event_id TEXT NOT NULL)",)

# Open puts of the upload in progress, and the parts that the store has accepted.
_FIFTH = (
    """CREATE TABLE open_puts (
        number INTEGER PRIMARY KEY,
        target_id TEXT NOT NULL,
        key TEXT NOT NULL,
        put_id TEXT NOT NULL,
        parameters TEXT NOT NULL,
        UNIQUE (target_id, key)
    )""",
    """CREATE TABLE put_parts (
        put INTEGER NOT NULL REFERENCES open_puts (number) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        size INTEGER NOT NULL,
        md5 BLOB NOT NULL,
        etag TEXT NOT NULL,
        PRIMARY KEY (put, number)
    ) WITHOUT ROWID""",
)

# Row sets: the hashes of the rows that a target has, in chunks of 128 KiB at most. `upload_id` is empty for what the
# target has. Otherwise the set is staged: it has the chunks that the upload changes, empty ones where it removes them.
# A cloud target has no rows in `memories` any more, and no base without a row set.
_SIXTH = (
    """CREATE TABLE row_sets (
        number INTEGER PRIMARY KEY,
        target_id TEXT NOT NULL,
        database TEXT NOT NULL,
        upload_id TEXT NOT NULL,
        origin BLOB NOT NULL,
        UNIQUE (target_id, database, upload_id)
    )""",
    """CREATE TABLE row_hashes (
        row_set INTEGER NOT NULL REFERENCES row_sets (number) ON DELETE CASCADE,
        chunk INTEGER NOT NULL,
        stored INTEGER NOT NULL,
        hashes BLOB NOT NULL,
        PRIMARY KEY (row_set, chunk)
    )""",
    "DROP TABLE staged_memories",
    "DROP TABLE staged_uploads",
    "DELETE FROM memory_bases",
    """DELETE FROM memories WHERE place IN (
        SELECT number FROM memory_places JOIN targets ON targets.id = target_id WHERE method = 'cloud'
    )""",
    """DELETE FROM memory_places WHERE target_id IN (SELECT id FROM targets WHERE method = 'cloud')""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
"""Migration n leads from version n to n + 1. A released migration is never changed."""

READABLE = 2
"""The earliest version that can be read without migration: later versions only add tables that are optional."""

MEMORIES = 3
"""The first version with memories."""

OPEN_PUTS = 5
"""The first version with open puts."""

ROW_SETS = 6
"""The first version with row sets. Base uploads of earlier versions are not used."""


def version(connection: sqlite3.Connection) -> int:
    """Return the version of the file's tables, 0 for an empty file."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def check_not_newer(found: int) -> None:
    """Raise StateError if a newer agent has created the tables."""
    if found > len(MIGRATIONS):
        raise StateError(
            f"the ledger has version {found}, but this agent supports {len(MIGRATIONS)}", hint="update akosha-agent"
        )


def migrate(connection: sqlite3.Connection) -> int:
    """Migrate the tables to the current version, in one transaction, and return the version that was found.

    Raises StateError if they are newer.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = version(connection)
        check_not_newer(found)
        for step in MIGRATIONS[found:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return found
