"""The process that has the engine: it checks a copy, and reads memories out of it, as it is told.

    python -m agent.adapters.duckdb_files.child COPY

`frames` says what goes to and fro. It ends when its standard input does, so it never outlives the process that started
it. It sees the copy's folder, and no more.
"""

import json
import os
import queue
import re
import sys
import threading
from pathlib import Path

from agent.adapters.duckdb_files.engine import limit, opened, quoted, reason
from agent.adapters.duckdb_files.frames import BEGIN, FOLD, OPEN, PAGE, READ, VERIFY, framed
from agent.adapters.duckdb_files.merging import fold
from agent.adapters.duckdb_files.reading import Reading
from agent.domain.memories import Json

_CANNOT = re.compile(r"\bversion\b|extension|encrypt|out of memory|not implemented", re.IGNORECASE)
"""What the engine says where it is sound but cannot read such a file."""

_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Commands = queue.SimpleQueue[bytes]


def main() -> int:
    """Serve the copy named by the only argument."""
    copy = Path(sys.argv[1])
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), name="end-with-parent", daemon=True).start()
    limit()
    try:
        _serve(copy, commands)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the answer
        _answer({"error": reason(error, copy.parent)})
    return 0


def _serve(copy: Path, commands: Commands) -> None:
    while True:
        verb, argument = _next(commands)
        if verb == VERIFY:
            _answer({"verdict": _verdict(copy)})
        elif verb == FOLD:
            _answer({"folded": fold(copy)})
        elif verb == OPEN:
            _read(copy, str(json.loads(argument)), commands)
        else:
            raise ValueError(f"no such command: {verb!r}")


def _verdict(copy: Path) -> Json:
    try:
        return {"rows": dict(examine(copy))}
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the verdict
        return {"error": reason(error, copy.parent), "damaged": not _CANNOT.search(f"{type(error)} {error}")}


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


def _read(copy: Path, graph: str, commands: Commands) -> None:
    """Serve the reading of the copy, to the end of this process."""
    with opened(copy) as engine:
        reading = Reading(engine, graph)
        _answer({"tables": len(reading.tables)})
        while True:
            verb, argument = _next(commands)
            if verb == BEGIN:
                reading.begin()
                _answer({"begun": True})
            elif verb == PAGE:
                _answer({"page": reading.page()})
                reading.look_ahead()
            elif verb == READ:
                _answer({"rows": reading.read(json.loads(argument))})
            else:
                raise ValueError(f"no such command: {verb!r}")


def _next(commands: Commands) -> tuple[bytes, bytes]:
    verb, _, argument = commands.get().strip().partition(b" ")
    return verb, argument


def _answer(document: Json) -> None:
    sys.stdout.buffer.write(framed(_encoded(document).encode()))
    sys.stdout.buffer.flush()


def _listen(commands: Commands) -> None:
    for line in sys.stdin.buffer:
        commands.put(line)
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
