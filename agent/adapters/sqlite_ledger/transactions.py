"""Runs the ledger's transactions one after the other, on the thread that owns the connection."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from agent.adapters.sqlite_ledger import file
from agent.domain.errors import StateError

T = TypeVar("T")

_log = structlog.get_logger()


async def run_to_end(thread: Executor, work: Callable[[], T], *, discard: Callable[[T], None] | None = None) -> T:
    """Run the work on the thread. If the caller is cancelled, finish the work first.

    After a cancellation, the result is passed to `discard` on the same thread, and an error is logged.
    """
    future = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def on_done(done: "asyncio.Future[T]") -> None:
            error = done.exception()
            if error is not None:
                _log.error("ledger_write_failed", error=str(error))
            elif discard is not None:
                thread.submit(discard, done.result())

        future.add_done_callback(on_done)
        await asyncio.wait([future])
        raise


class Transactions:
    """Runs transactions: all or nothing, and on disk when the call returns. Raises SQLite's errors as StateError."""

    def __init__(self, path: Path, thread: Executor, connection: sqlite3.Connection, *, read_only: bool) -> None:
        self._path, self._thread, self._connection = path, thread, connection
        self.read_only, self._closed = read_only, False
        self._identity = file.identity(path)

    async def write(self, work: Callable[[], T]) -> T:
        """Run the work in a write transaction. Raises StateError if the file was opened for reading."""
        if self.read_only:
            raise StateError(f"{self._path} was opened for reading only")
        return await self._run("BEGIN IMMEDIATE", work)

    async def read(self, work: Callable[[], T]) -> T:
        """Run the work in a read transaction: all its queries see the same state."""
        return await self._run("BEGIN", work)

    def run(self, begin: str, work: Callable[[], T]) -> T:
        """Run the work in a transaction. Call it on the ledger's thread."""
        self._check_in_place()
        with file.translated(self._path):
            self._connection.execute(begin)
            try:
                result = work()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # if the disk is full, SQLite has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise
        return result

    async def aclose(self) -> None:
        """Finish the pending transactions, close the connection, end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await run_to_end(self._thread, self.close)
        finally:
            self._thread.shutdown(wait=False)

    def close(self) -> None:
        """Close the connection. Call it on the ledger's thread."""
        with file.translated(self._path):
            self._connection.close()

    def _check_in_place(self) -> None:
        """Raise LedgerDamaged if the file has no longer its name: SQLite would go on in a file that no other opens."""
        if self.read_only:
            return
        with suppress(OSError):  # the directory cannot be read now
            if file.identity(self._path) != self._identity:
                raise file.damaged(f"{self._path} was deleted or replaced while it was in use")

    async def _run(self, begin: str, work: Callable[[], T]) -> T:
        if self._closed:
            raise StateError(f"{self._path} is closed already")
        return await run_to_end(self._thread, lambda: self.run(begin, work))
