"""The child process that runs DuckDB. It verifies, folds or reads a copy at the parent's commands.

    python -m agent.adapters.duckdb.child COPY

`child_protocol` describes the commands. The child exits at the end of its standard input: it never outlives its parent.
Each copy is opened in a DuckDB instance of its own, which can access the copy's folder only.
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
from agent.adapters.duckdb.child.engine import ADDRESS_SPACE_BYTES, Engine, load, opened, reason
from agent.adapters.duckdb.child.reading import Reading
from agent.adapters.duckdb.child_protocol import (
    BEGIN,
    COMPARE,
    COPY,
    FOLD,
    LEAVE_OUT,
    OPEN,
    PAGE,
    READ,
    REPLAY,
    VERIFY,
    scratch_name,
)
from agent.domain.memories import Json

Commands = queue.SimpleQueue[bytes]


_output = Output()


def main() -> int:
    """Serve the copy named by the only argument, and those that the parent names."""
    copy = _Copy(Path(sys.argv[1]))
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), name="end-with-parent", daemon=True).start()
    threading.Thread(target=_output.beat, name="beat", daemon=True).start()
    limit_resources(ADDRESS_SPACE_BYTES)
    try:
        load()  # before the first command: the child may be started ahead of it
        _serve(copy, commands)
    except Exception as error:  # noqa: BLE001 - any error of DuckDB is the answer
        _output.answer({"error": reason(error, copy.path.parent)})
    return 0


class _Copy:
    """The copy. The connection that verified it also reads it: DuckDB needs 20 ms of processor time to open one."""

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


def _serve(copy: _Copy, commands: Commands) -> None:
    verb, argument = _next(commands)
    while True:
        following = None
        if verb in (VERIFY, REPLAY):
            _output.answer({"verdict": _verdict(copy, whole=verb == VERIFY)})
        elif verb == FOLD:
            copy.close()
            _output.answer({"folded": fold(copy.path)})
        elif verb == OPEN:
            following = _read(copy, str(json.loads(argument)), commands)
        elif verb == COPY:
            copy.close()
            copy.path = Path(str(json.loads(argument)))
            _output.answer({"copy": True})
        else:
            raise ValueError(f"no such command: {verb!r}")
        verb, argument = following or _next(commands)


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


def _read(copy: _Copy, graph: str, commands: Commands) -> tuple[bytes, bytes]:
    """Read memories from the copy at the parent's commands; return the first that is not about that."""
    reading = Reading(copy.engine(), graph, copy.path.with_name(scratch_name(os.getpid())))
    _output.answer({"tables": len(reading.tables)})
    failed: Exception | None = None
    while True:
        verb, argument = _next(commands)
        if failed is not None:
            raise failed
        if verb == COMPARE:
            _output.answer({"rows": reading.compare(str(json.loads(argument)))})
        elif verb == LEAVE_OUT:
            reading.leave_out(json.loads(argument))
            _output.answer({"rows": True})
        elif verb == BEGIN:
            reading.begin()
            _output.answer({"started": True})
        elif verb == PAGE:
            _output.answer({"page": reading.page()})
            try:
                reading.prefetch()
            except Exception as error:  # noqa: BLE001 - the next command has not been sent yet
                failed = error
        elif verb == READ:
            _output.answer({"rows": reading.read(json.loads(argument))})
        else:
            return verb, argument


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
