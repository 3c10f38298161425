"""The child process that runs DuckDB. It verifies, folds or reads a copy at the parent's commands.

    python -m agent.adapters.duckdb.child COPY

`child_protocol` describes the commands. The child exits at the end of its standard input: it never outlives its parent.
DuckDB can access the copy's folder only.
"""

import json
import os
import queue
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from agent.adapters.child_output import Output, limit_resources
from agent.adapters.duckdb.child.contents import contents, fold, is_unsupported
from agent.adapters.duckdb.child.engine import ADDRESS_SPACE_BYTES, Engine, opened, reason
from agent.adapters.duckdb.child.reading import Reading
from agent.adapters.duckdb.child_protocol import BEGIN, FOLD, OPEN, PAGE, READ, REPLAY, VERIFY
from agent.domain.memories import Json

Commands = queue.SimpleQueue[bytes]


_output = Output()


def main() -> int:
    """Serve the copy named by the only argument."""
    copy = Path(sys.argv[1])
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), name="end-with-parent", daemon=True).start()
    threading.Thread(target=_output.beat, name="beat", daemon=True).start()
    limit_resources(ADDRESS_SPACE_BYTES)
    try:
        _serve(copy, commands)
    except Exception as error:  # noqa: BLE001 - any error of DuckDB is the answer
        _output.answer({"error": reason(error, copy.parent)})
    return 0


class _Copy:
    """The copy. The connection that verified it also reads it: DuckDB needs 30 ms of processor time to open one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = ExitStack()
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        """Return the open copy; opens it if it is closed. Raises DuckDB's errors."""
        if self._engine is None:
            self._engine = self._opened.enter_context(opened(self.path))
        return self._engine

    def close(self) -> None:
        self._engine = None
        self._opened.close()


def _serve(path: Path, commands: Commands) -> None:
    copy = _Copy(path)
    while True:
        verb, argument = _next(commands)
        if verb in (VERIFY, REPLAY):
            _output.answer({"verdict": _verdict(copy, whole=verb == VERIFY)})
        elif verb == FOLD:
            copy.close()
            _output.answer({"folded": fold(path)})
        elif verb == OPEN:
            _read(copy.engine(), str(json.loads(argument)), commands)
        else:
            raise ValueError(f"no such command: {verb!r}")


def _verdict(copy: _Copy, *, whole: bool) -> Json:
    """Read every column of every row that this DuckDB supports, or only count the rows. Does not modify the copy."""
    try:
        found = contents(copy.engine(), whole=whole)
    except ImportError:  # says nothing about the copy: duckdb is being replaced by an upgrade
        raise
    except Exception as error:  # noqa: BLE001 - any error of DuckDB is the verdict
        copy.close()
        return {"error": reason(error, copy.path.parent), "damaged": not is_unsupported(error)}
    return {"rows": dict(found.rows), "unread": dict(found.unread)}


def _read(engine: Engine, graph: str, commands: Commands) -> None:
    """Read memories from the copy at the parent's commands, until the process ends."""
    reading = Reading(engine, graph)
    _output.answer({"tables": len(reading.tables)})
    while True:
        verb, argument = _next(commands)
        if verb == BEGIN:
            reading.begin()
            _output.answer({"started": True})
        elif verb == PAGE:
            _output.answer({"page": reading.page()})
            reading.prefetch()
        elif verb == READ:
            _output.answer({"rows": reading.read(json.loads(argument))})
        else:
            raise ValueError(f"no such command: {verb!r}")


def _next(commands: Commands) -> tuple[bytes, bytes]:
    verb, _, argument = commands.get().strip().partition(b" ")
    return verb, argument


def _listen(commands: Commands) -> None:
    for line in sys.stdin.buffer:
        _output.command_received()
        commands.put(line)
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
