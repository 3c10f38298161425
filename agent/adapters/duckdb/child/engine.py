"""DuckDB in a child process: limited, sandboxed, with the copy attached read-only. Imports duckdb.

Only the child program imports this module. It runs at low priority, and DuckDB can access the copy's folder only.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.adapters.duckdb.child_protocol import scratch_name

MEMORY_LIMIT = "80MB"
"""DuckDB's memory limit. With it the process allocates less than 128 MiB while it verifies or lists, whatever the
size of the database; it allocated 134 MiB while it read a million complete rows."""

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
    """One copy, attached as `s`."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a statement, fetched in small batches. Raises OutOfMemory, or another error of DuckDB."""
        import duckdb  # noqa: PLC0415

        try:
            result = self._connection.execute(statement, parameters)  # type: ignore[attr-defined]
            while some := result.fetchmany(_FETCHED):
                yield from some
        except duckdb.OutOfMemoryException as error:
            raise OutOfMemory(str(error)) from error


@contextmanager
def opened(copy: Path, *, folding: str | None = None) -> Iterator[Engine]:
    """Open the copy read-only; with `folding` (a memory limit) for writing, to merge its WAL into it.

    A read-only ATTACH replays the WAL in memory and changes no byte, in every state in which Session-Buddy leaves one.
    """
    import duckdb  # noqa: PLC0415 - a missing module is an answer, not a crash

    scratch = copy.parent / scratch_name(os.getpid())
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as connection:
        for statement in (
            f"SET memory_limit = '{folding or MEMORY_LIMIT}'",
            "SET threads = 1",
            "SET autoload_known_extensions = false",
            f"SET temp_directory = {quoted(str(scratch), chr(39))}",
            f"SET allowed_directories = [{quoted(str(copy.parent), chr(39))}]",
            "SET enable_external_access = false",
            f"ATTACH {quoted(str(copy), chr(39))} AS s (READ_{'WRITE' if folding else 'ONLY'})",
            "SET lock_configuration = true",
        ):
            connection.execute(statement)
        yield Engine(connection)


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
