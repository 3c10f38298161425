"""The process that opens a copy with the engine and reads all of it. Alone in importing duckdb.

    python -m agent.adapters.duckdb_snapshot.child COPY

One JSON object comes out: `{"rows": {table: count}}`, or `{"error": text, "damaged": bool}`; `damaged` is false where
the engine is sound but cannot read such a file (newer version, missing extension, encrypted, memory limit). It ends
when its standard input does, so it never outlives the process that started it. It sees its own folder, and no more.
"""

import json
import os
import re
import resource
import sys
import threading
from pathlib import Path

MEMORY_LIMIT = "80MB"
"""What the engine counts; all that the process allocates stays below 128 MiB."""

SCRATCH = "engine.tmp"

_ADDRESS_SPACE_BYTES = 2 * 2**30
_PATH = re.compile(r"(?:/[^/\s'\"]+)+/([^/\s'\"]+)")
_CANNOT = re.compile(r"\bversion\b|extension|encrypt|out of memory|not implemented", re.IGNORECASE)
_LONGEST_REASON = 300


def main() -> int:
    """Examine the copy named by the only argument; print the verdict."""
    copy = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _limit()
    try:
        verdict: dict[str, object] = {"rows": examine(copy)}
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the verdict
        verdict = {"error": _reason(error, copy.parent), "damaged": not _CANNOT.search(f"{type(error)} {error}")}
    print(json.dumps(verdict), flush=True)  # noqa: T201 - the answer
    return 0


def examine(copy: Path) -> dict[str, int]:
    """Read every column of every row; return the rows per table. Leaves the copy's bytes alone.

    Only a read-only ATTACH does: a WAL is replayed in memory, in every state Session-Buddy leaves one in.
    """
    import duckdb  # noqa: PLC0415 - a missing engine is a verdict, not a crash

    folder = _quoted(str(copy.parent), "'")
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False}) as engine:
        for statement in (
            f"SET memory_limit = '{MEMORY_LIMIT}'",
            "SET threads = 1",
            "SET autoload_known_extensions = false",
            f"SET temp_directory = {_quoted(str(copy.parent / SCRATCH), chr(39))}",
            f"SET allowed_directories = [{folder}]",
            "SET enable_external_access = false",
            f"ATTACH {_quoted(str(copy), chr(39))} AS s (READ_ONLY)",
            "SET lock_configuration = true",
        ):
            engine.execute(statement)
        tables = engine.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() "
            "WHERE database_name = 's' AND NOT internal ORDER BY ALL"
        ).fetchall()
        rows: dict[str, int] = {}
        for schema, table in tables:
            # The alias stands for the whole row, as long as no column has its name.
            source = f's.{_quoted(schema)}.{_quoted(table)} AS "the whole row"'
            counted = engine.execute(f'SELECT count(*), bit_xor(hash("the whole row")) FROM {source}').fetchone()  # noqa: S608 - quoted
            rows[table if schema == "main" else f"{schema}.{table}"] = counted[0] if counted else 0
        return rows


def _quoted(text: str, quote: str = '"') -> str:
    return quote + text.replace(quote, quote * 2) + quote


def _reason(error: Exception, folder: Path) -> str:
    """Return the first line of the message, without the paths of this machine."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _PATH.sub(r"\1", lines[0].replace(f"{folder}/", ""))[:_LONGEST_REASON]


def _limit() -> None:
    """Give way to others; a backstop behind the engine's own memory limit; no core with somebody's memories in it."""
    os.nice(10)
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES)):
        _, hard = resource.getrlimit(limit)
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(limit, (wanted, hard))
        except (OSError, ValueError):
            continue  # macOS refuses some: the engine's own limit holds


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
