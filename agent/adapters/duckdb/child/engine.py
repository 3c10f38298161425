"""DuckDB in a child process: limited, sandboxed, with the copy attached read-only. Imports duckdb.

Only the child program imports this module. DuckDB can access the copy's folder only.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from agent.adapters.duckdb.child_protocol import scratch_name

MEMORY_LIMITS = ("80MB", "160MB", "320MB", "640MB")
"""DuckDB's memory limits, each used if the one before is too low.

With the first, the process allocates less than 128 MiB while it verifies or lists, whatever the number of rows; it
allocated 134 MiB while it read a million complete rows. The others are for long texts: DuckDB 2.0 decompresses those
of 2,048 rows at once."""

FOLDING_MEMORY_LIMITS = ("512MB", "1280MB")
"""DuckDB's memory limits while it folds: the index of a table must fit. The second is used if the first is too low."""

Cell = str | int | bool | list["Cell"] | None
"""A value that our statements return."""

ADDRESS_SPACE_BYTES = 2 * 2**30
_PATH = re.compile(r"(?:/[^/\s'\"]+)+/([^/\s'\"]+)")
_LONGEST_REASON = 300
_FETCHED = 256
"""Number of rows held as Python objects at a time; DuckDB holds the others, within its limit."""


class OutOfMemory(Exception):  # noqa: N818 - DuckDB's own name
    """A statement exceeded the memory limit. A smaller one may succeed."""


class Engine:
    """One copy, attached as `s`. `limits`: DuckDB's memory limits, used one after the other."""

    def __init__(self, copy: Path, limits: Sequence[str], access: str) -> None:
        self._copy, self._access = copy, access
        self._limits = iter(limits)
        self._prepared: list[str] = []
        self._opened = ExitStack()

    def open(self) -> None:
        """Open the copy with the first memory limit that suffices. Raises DuckDB's errors."""
        self._open(next(self._limits))

    def close(self) -> None:
        self._opened.close()

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a statement, fetched in small batches. Raises OutOfMemory, or another error of DuckDB."""
        import duckdb  # noqa: PLC0415

        try:
            result = self._connection.execute(statement, parameters)
            while some := result.fetchmany(_FETCHED):
                yield from some
        except duckdb.OutOfMemoryException as error:
            raise OutOfMemory(str(error)) from error

    def all_rows(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Cell, ...]]:
        """Return the rows of a statement that returns few. With too little memory, DuckDB gets more."""
        while True:
            try:
                return list(self.rows(statement, parameters))
            except OutOfMemory as error:
                self.more_memory(error)

    def prepare(self, statement: str) -> None:
        """Create a temporary table, now and whenever the copy is opened again."""
        self.all_rows(statement)
        self._prepared.append(statement)

    def more_memory(self, error: OutOfMemory) -> None:
        """Open the copy again with the next memory limit. Raises `error` if there is none, or DuckDB's errors."""
        limit = next(self._limits, None)
        if limit is None:
            raise error
        self._open(limit)

    def _open(self, limit: str) -> None:
        import duckdb  # noqa: PLC0415 - a missing module is an answer, not a crash

        self.close()
        folder = self._copy.parent
        self._connection = self._opened.enter_context(
            duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
        )
        try:
            for statement in (
                f"SET memory_limit = '{limit}'",
                "SET threads = 1",
                "SET autoload_known_extensions = false",
                f"SET temp_directory = {quoted(str(folder / scratch_name(os.getpid())), chr(39))}",
                f"SET allowed_directories = [{quoted(str(folder), chr(39))}]",
                "SET enable_external_access = false",
                f"ATTACH {quoted(str(self._copy), chr(39))} AS s ({self._access})",
                "SET lock_configuration = true",
                *self._prepared,
            ):
                self._connection.execute(statement)
        except duckdb.OutOfMemoryException as error:
            self.more_memory(OutOfMemory(str(error)))


def load() -> None:
    """Import duckdb. `opened` reports a failure."""
    with suppress(ImportError):
        import duckdb  # noqa: F401, PLC0415


@contextmanager
def opened(copy: Path, *, folding: str | None = None) -> Iterator[Engine]:
    """Open the copy read-only; with `folding` (a memory limit) for writing, to merge its WAL into it.

    A read-only ATTACH replays the WAL in memory and changes no byte, in every state in which Session-Buddy leaves one.
    """
    engine = Engine(copy, [folding] if folding else MEMORY_LIMITS, "READ_WRITE" if folding else "READ_ONLY")
    with closing(engine):
        engine.open()
        yield engine


def quoted(text: str, quote: str = '"') -> str:
    return quote + text.replace(quote, quote * 2) + quote


def reason(error: Exception, folder: Path) -> str:
    """Return the first line of the message, without paths of this machine."""
    return _PATH.sub(r"\1", _first_line(error).replace(f"{folder}/", ""))[:_LONGEST_REASON]


def reason_in(error: Exception) -> str:
    """Return the first line of a message that has no paths, because it is about the contents of the database."""
    return _first_line(error)[:_LONGEST_REASON]


def _first_line(error: Exception) -> str:
    # A failed checkpoint reports its cause after "Original error: ".
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition("Original error: ")[2]
