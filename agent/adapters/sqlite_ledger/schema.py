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
    # A position is never used twice (AUTOINCREMENT), also after events were let go. published_at NULL is the outbox.
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

# Kept for ever, so kept small: 16 bytes of a digest for each event of others that was handled.
_SECOND = ("CREATE TABLE handled (digest BLOB PRIMARY KEY) WITHOUT ROWID",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)
"""Step n leads from version n to n + 1. Never changed once released, only added to."""


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
