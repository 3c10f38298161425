"""The process that has the engine: it checks a copy, and reads memories out of it, as the parent asks.

    python -m agent.adapters.duckdb.child COPY

`frames` says what goes to and fro. It ends when its standard input does, so it never outlives the process that started
it. It sees the copy's folder, and no more.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

from agent.adapters.duckdb.contents import Contents, contents, fold, is_inability
from agent.adapters.duckdb.engine import limit, opened, reason
from agent.adapters.duckdb.frames import BEAT, BEAT_SECONDS, BEGIN, FOLD, OPEN, PAGE, READ, VERIFY, framed
from agent.adapters.duckdb.reading import Reading
from agent.domain.memories import Json

LEAST_WORK_SECONDS = 0.001
"""Of processor time between two beats."""

_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Commands = queue.SimpleQueue[bytes]


class _Voice:
    """What goes to the parent: answers, and signs of progress while one is owed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owed = 0

    def asked(self) -> None:
        with self._guard:
            self._owed += 1

    def answer(self, document: Json) -> None:
        with self._guard:
            self._owed -= 1
            self._write(framed(_encoded(document).encode()))

    def beat(self) -> None:
        """Tell of progress for as long as the process lives: an engine that hangs uses no processor time."""
        used = 0.0
        while True:
            time.sleep(BEAT_SECONDS)
            with self._guard:
                now = time.process_time() - time.thread_time()  # the beating is no progress
                if self._owed and now - used >= LEAST_WORK_SECONDS:
                    self._write(BEAT)
                    used = now

    @staticmethod
    def _write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


_voice = _Voice()


def main() -> int:
    """Serve the copy named by the only argument."""
    copy = Path(sys.argv[1])
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), name="end-with-parent", daemon=True).start()
    threading.Thread(target=_voice.beat, name="beat", daemon=True).start()
    limit()
    try:
        _serve(copy, commands)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the answer
        _voice.answer({"error": reason(error, copy.parent)})
    return 0


def _serve(copy: Path, commands: Commands) -> None:
    while True:
        verb, argument = _next(commands)
        if verb == VERIFY:
            _voice.answer({"verdict": _verdict(copy)})
        elif verb == FOLD:
            _voice.answer({"folded": fold(copy)})
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
        _voice.answer({"tables": len(reading.tables)})
        while True:
            verb, argument = _next(commands)
            if verb == BEGIN:
                reading.begin()
                _voice.answer({"begun": True})
            elif verb == PAGE:
                _voice.answer({"page": reading.page()})
                reading.look_ahead()
            elif verb == READ:
                _voice.answer({"rows": reading.read(json.loads(argument))})
            else:
                raise ValueError(f"no such command: {verb!r}")


def _next(commands: Commands) -> tuple[bytes, bytes]:
    verb, _, argument = commands.get().strip().partition(b" ")
    return verb, argument


def _listen(commands: Commands) -> None:
    for line in sys.stdin.buffer:
        _voice.asked()
        commands.put(line)
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
