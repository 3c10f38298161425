"""Transactions on the connection of the ledger, one after the other, on the one thread that owns it."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import structlog

from agent.adapters.sqlite_ledger import file
from agent.domain.errors import StateError

T = TypeVar("T")

_log = structlog.get_logger()


async def finished(thread: Executor, work: Callable[[], T], *, discard: Callable[[T], None] | None = None) -> T:
    """Do the work on the thread to its end, also where the caller is cancelled: then it is awaited first.

    Its result then goes to `discard`, on the same thread; its error is logged.
    """
    future = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def look(done: "asyncio.Future[T]") -> None:
            error = done.exception()
            if error is not None:
                _log.error("ledger_write_failed", error=str(error))
            elif discard is not None:
                thread.submit(discard, done.result())

        future.add_done_callback(look)
        await asyncio.wait([future])
        raise


class Transactions:
    """All or nothing, and on disk when it returns. What SQLite complains about is a StateError."""

    def __init__(self, path: Path, thread: Executor, connection: sqlite3.Connection, *, read_only: bool) -> None:
        self._path, self._thread, self._connection = path, thread, connection
        self.read_only, self._closed = read_only, False

    async def write(self, work: Callable[[], T]) -> T:
        """Do the work in a transaction of its own. Raises StateError where the file was opened for reading."""
        if self.read_only:
            raise StateError(f"{self._path} was opened for reading only")
        return await self._run("BEGIN IMMEDIATE", work)

    async def read(self, work: Callable[[], T]) -> T:
        """Do the work on one unchanging view of the file."""
        return await self._run("BEGIN", work)

    def run(self, begin: str, work: Callable[[], T]) -> T:
        """Do the work in a transaction, on the ledger's thread already."""
        with file.translated(self._path):
            self._connection.execute(begin)
            try:
                done = work()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has SQLite roll back by itself
                    self._connection.execute("ROLLBACK")
                raise
        return done

    async def aclose(self) -> None:
        """Finish what was begun, close the connection, end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await finished(self._thread, self.close)
        finally:
            self._thread.shutdown(wait=False)

    def close(self) -> None:
        """Close the connection, on the ledger's thread already."""
        with file.translated(self._path):
            self._connection.close()

    async def _run(self, begin: str, work: Callable[[], T]) -> T:
        if self._closed:
            raise StateError(f"{self._path} is closed already")
        return await finished(self._thread, lambda: self.run(begin, work))
