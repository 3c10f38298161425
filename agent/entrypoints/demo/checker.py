"""A process that opens restored databases with DuckDB and tells what is in them. Nothing of the agent is in it.

    python -m agent.entrypoints.demo.checker FOLDER...

One JSON line per folder, as soon as it is read: `{"folder": ..., "tables": {table: [rows, digest]}, "error": text or
null}`. A folder that crashes the engine has no line, nor have those after it.
"""

import json
import sys
from pathlib import Path

import duckdb

from agent.entrypoints.demo import shape


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Return rows and digest per table of the databases in a folder; leaves their bytes alone. Raises duckdb.Error."""
    found: dict[str, tuple[int, str]] = {}
    for name, tables in shape.TABLES.items():
        with duckdb.connect(":memory:") as engine:
            quoted = str(folder / name).replace("'", "''")
            engine.execute(f"ATTACH '{quoted}' AS memories (READ_ONLY)")
            engine.execute("USE memories")
            for table in tables:
                row = engine.execute(shape.digest_query(table)).fetchone()
                assert row is not None
                found[table] = (row[0], row[1])
    return found


def main() -> int:
    """Tell about each folder named. Returns 0: what is wrong is in the lines."""
    for folder in sys.argv[1:]:
        line: dict[str, object] = {"folder": folder, "tables": {}, "error": None}
        try:
            line["tables"] = contents(Path(folder))
        except duckdb.Error as error:
            line["error"] = str(error).splitlines()[0]
        print(json.dumps(line), flush=True)  # noqa: T201 - that is the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
