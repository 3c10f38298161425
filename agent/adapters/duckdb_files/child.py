"""The process that opens a copy with the engine and reads all of it.

    python -m agent.adapters.duckdb_files.child COPY

One JSON object comes out: `{"rows": {table: count}}`, or `{"error": text, "damaged": bool}`; `damaged` is false where
the engine is sound but cannot read such a file (newer version, missing extension, encrypted, memory limit). It ends
when its standard input does, so it never outlives the process that started it. It sees its own folder, and no more.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path

from agent.adapters.duckdb_files.engine import limit, opened, quoted, reason

_CANNOT = re.compile(r"\bversion\b|extension|encrypt|out of memory|not implemented", re.IGNORECASE)


def main() -> int:
    """Examine the copy named by the only argument; print the verdict."""
    copy = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    limit()
    try:
        verdict: dict[str, object] = {"rows": examine(copy)}
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the verdict
        verdict = {"error": reason(error, copy.parent), "damaged": not _CANNOT.search(f"{type(error)} {error}")}
    print(json.dumps(verdict), flush=True)  # noqa: T201 - the answer
    return 0


def examine(copy: Path) -> dict[str, int]:
    """Read every column of every row; return the rows per table. Leaves the copy's bytes alone."""
    with opened(copy) as engine:
        tables = list(
            engine.rows(
                "SELECT schema_name, table_name FROM duckdb_tables() "
                "WHERE database_name = 's' AND NOT internal ORDER BY ALL"
            )
        )
        rows: dict[str, int] = {}
        for schema, table in tables:
            # The alias stands for the whole row, as long as no column has its name.
            source = f's.{quoted(str(schema))}.{quoted(str(table))} AS "the whole row"'
            for count, _ in engine.rows(f'SELECT count(*), bit_xor(hash("the whole row")) FROM {source}'):  # noqa: S608 - quoted
                assert isinstance(count, int)
                rows[str(table) if schema == "main" else f"{schema}.{table}"] = count
        return rows


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
