"""The engine, as both child programs have it: limits first, a sandbox, the copy attached read-only. Imports duckdb.

Only child programs import this room. What runs here gives way to others, sees the copy's folder and no more, and ends
when its standard input does, so it never outlives the process that started it.
"""

import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.adapters.duckdb.frames import scratch_name

MEMORY_LIMIT = "80MB"
"""What the engine counts. All that the process allocates stays below 128 MiB while it checks or looks, whatever the
size; reading a million rows whole it was 134 MiB."""

FOLDING_MEMORY_LIMITS = ("512MB", "1280MB")
"""What it may count while it folds: a table's index must fit, whole. The second, where the first does not do."""

Cell = str | int | bool | None
"""What our statements return."""

_ADDRESS_SPACE_BYTES = 2 * 2**30
_PATH = re.compile(r"(?:/[^/\s'\"]+)+/([^/\s'\"]+)")
_LONGEST_REASON = 300
_FETCHED = 256
"""Rows that stand here as Python objects at a time; the engine has the rest, within its limit."""


class OutOfMemory(Exception):  # noqa: N818 - the engine's own name for it
    """A statement wanted more than the engine's limit. Asked for less, it may do."""


class Engine:
    """One copy, attached as `s`."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield what a statement returns, a few rows at a time. Raises OutOfMemory, or whatever the engine raises."""
        import duckdb  # noqa: PLC0415

        try:
            result = self._connection.execute(statement, parameters)  # type: ignore[attr-defined]
            while some := result.fetchmany(_FETCHED):
                yield from some
        except duckdb.OutOfMemoryException as error:
            raise OutOfMemory(str(error)) from error


@contextmanager
def opened(copy: Path, *, folding: str | None = None) -> Iterator[Engine]:
    """Open the copy; its bytes stay as they are, but for `folding` (with so much memory): its WAL becomes part of it.

    Only a read-only ATTACH leaves the bytes: a WAL is replayed in memory, in every state Session-Buddy leaves one in.
    """
    import duckdb  # noqa: PLC0415 - a missing engine is an answer, not a crash

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
    """Return the first line of the message, without the paths of this machine."""
    return _PATH.sub(r"\1", _first_line(error).replace(f"{folder}/", ""))[:_LONGEST_REASON]


def reason_in(error: Exception) -> str:
    """Return the first line of a message about something in the database: it has no paths."""
    return _first_line(error)[:_LONGEST_REASON]


def _first_line(error: Exception) -> str:
    """A checkpoint that fails says so at length before it says why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition("Original error: ")[2]


def limit() -> None:
    """Give way to others; a backstop behind the engine's own memory limit; no core with somebody's memories in it."""
    os.nice(10)
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES)):
        _, hard = resource.getrlimit(kind)
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (wanted, hard))
        except (OSError, ValueError):
            continue  # macOS refuses some: the engine's own limit holds
