"""The process that has the engine: it checks a copy, and reads memories out of it, as it is told.

    python -m agent.adapters.duckdb_files.child COPY

`frames` says what goes to and fro. It ends when its standard input does, so it never outlives the process that started
it. It sees the copy's folder, and no more.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path

from agent.adapters.duckdb_files.contents import Contents, contents, is_inability
from agent.adapters.duckdb_files.engine import limit, opened, reason
from agent.adapters.duckdb_files.frames import BEGIN, FOLD, OPEN, PAGE, READ, VERIFY, framed
from agent.adapters.duckdb_files.merging import fold
from agent.adapters.duckdb_files.reading import Reading
from agent.domain.memories import Json

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
        found = examine(copy)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the verdict
        return {"error": reason(error, copy.parent), "damaged": not is_inability(error)}
    return {"rows": dict(found.rows), "unread": dict(found.unread)}


def examine(copy: Path) -> Contents:
    """Read every column of every row that this engine can read. Leaves the copy's bytes alone."""
    with opened(copy) as engine:
        return contents(engine)


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
