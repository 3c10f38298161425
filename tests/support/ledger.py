"""The ledger without a thread and without fsync, in memory or in a file, for tests of its users."""

import sqlite3
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from agent.adapters.sqlite_ledger import SqliteLedger, schema
from agent.adapters.wire import CloudEventsCodec
from agent.bootstrap.home import LEDGER_EVENT_BYTES
from agent.ports import Clock

T = TypeVar("T")


class InlineExecutor(Executor):
    """Runs the work at once, in the caller's thread."""

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - an executor passes every exception to the future
            future.set_exception(error)
        return future


def without_fsync(ledger: SqliteLedger) -> None:
    """Make the ledger's writes return before they are on disk, for tests with thousands of writes."""
    ledger._thread.submit(ledger._connection.execute, "PRAGMA synchronous = OFF").result()


def inline_ledger(clock: Clock, path: Path | None = None) -> SqliteLedger:
    """Return the ledger of a file, or an empty one in memory. A file can be opened again, like after a restart.

    It is closed when it is no longer used.
    """
    connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    schema.migrate(connection)
    codec = CloudEventsCodec(max_bytes=LEDGER_EVENT_BYTES)
    ledger = SqliteLedger(path or Path("/nowhere"), InlineExecutor(), connection, codec, clock, read_only=False)
    weakref.finalize(ledger._transactions, connection.close)  # `ledger.memories()` uses it alone
    return ledger


def downgrade(path: Path, version: int) -> None:
    """Give a ledger's file, which no process has open, the tables of an earlier version."""
    statements = [statement for step in schema.MIGRATIONS[version:] for statement in step]
    with closing(sqlite3.connect(path)) as connection:
        for statement in reversed(statements):
            verb, kind, name, *_ = statement.split()
            if verb == "CREATE":
                connection.execute(f"DROP {kind} {name}")
            elif verb == "DROP":
                created = (each for step in schema.MIGRATIONS for each in step)
                connection.execute(next(each for each in created if each.split()[:3] == ["CREATE", kind, name]))
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
