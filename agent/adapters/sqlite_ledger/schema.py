"""The tables, and the way from each version of them to the next. `PRAGMA user_version` counts the steps taken.

Times are ISO texts in UTC of one length, so that they sort; what is only ever read whole is JSON.
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
    # A position is never used twice (AUTOINCREMENT), also after events were deleted. published_at NULL is the outbox.
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

# Never deleted, so kept small: 16 bytes of a digest for each event of others that was handled.
_SECOND = ("CREATE TABLE handled (digest BLOB PRIMARY KEY) WITHOUT ROWID",)

# A row in a few dozen bytes, for a million rows: `place` is the number of a target, database and kind, ids are UTF-8,
# digests 16 bytes. `held` NULL is delivered; 1 waits, 2 was refused: then `since` is in microseconds since 1970.
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
    # In the order of arrival, without a key: writing a batch writes a page or two.
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

# Session ends that no result has answered yet, in the order of their arrival.
_FOURTH = ("CREATE TABLE open_ends (position INTEGER PRIMARY KEY, event_id TEXT NOT NULL)",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND, _THIRD, _FOURTH)
"""Step n leads from version n to n + 1. Never changed once released, only added to."""

READABLE = 2
"""The earliest version that can be read as it lies: what came later are tables that it does without."""

MEMORIES = 3
"""The first version that knows of memories."""


def version(connection: sqlite3.Connection) -> int:
    """Return the version of the file's tables, 0 for an empty file."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def check_not_newer(found: int) -> None:
    """Raise StateError for tables that a later agent has made."""
    if found > len(MIGRATIONS):
        raise StateError(
            f"the ledger is of version {found}, this agent knows {len(MIGRATIONS)}", hint="update akosha-agent"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the present version, in one transaction. Raises StateError where they are newer."""
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
