"""One `akosha-agent run` that kills itself (SIGKILL) at a named point; a program for tests to run.

    python tests/faults/killed_run.py POINT run [options]

POINT is `name:before` or `name:after`, with a name of CALLS or MULTIPART, or `migration:N`: within the Nth migration of
the ledger.
"""

import sqlite3
import sys
from collections.abc import Callable, Mapping

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.directory_store.incoming import Incoming
from agent.adapters.duckdb import DuckdbSnapshotTaker, MirrorDirectory
from agent.adapters.nats.core import NatsVolatileBus
from agent.adapters.nats.durable import NatsDurableBus
from agent.adapters.patches import ZstdPatcher
from agent.adapters.s3.multipart import Multipart
from agent.adapters.sqlite_ledger import SqliteLedger, schema
from agent.adapters.sqlite_ledger.memories import SqliteMemories
from agent.adapters.sqlite_ledger.open_puts import SqlitePutJournal
from agent.domain.events import SyncRequested
from agent.entrypoints.cli.app import app
from tests.faults.killed_sync import kill, kill_at
from tests.support.constants import replace_from_environment


def _any(*_: object) -> bool:
    return True


def _put(name: str) -> tuple[type, str, Callable[..., bool]]:
    return DirectoryStore, "put", lambda key, *_: key.endswith(f"/{name}")


CALLS: Mapping[str, tuple[type, str, Callable[..., bool]]] = {
    "snapshot": (DuckdbSnapshotTaker, "copy", _any),
    "verify": (DuckdbSnapshotTaker, "verify", _any),
    "mirror": (MirrorDirectory, "put", _any),
    "mirror_record": (MirrorDirectory, "_write", _any),
    "mirror_cleanup": (MirrorDirectory, "_remove_others", _any),
    **{name: (SqliteLedger, name, _any) for name in ("mark_owed", "begin", "deliver", "confirm")},
    "stage": (SqliteMemories, "stage", _any),
    "reflection": _put("reflection.duckdb"),
    "make-patch": (ZstdPatcher, "make", _any),
    "patch": (DirectoryStore, "put", lambda key, *_: ".patch-" in key),
    "base": (DirectoryStore, "copy", lambda _, key, *__: key.endswith(".base")),
    "retain": (MirrorDirectory, "retain", _any),
    "wal": _put("reflection.duckdb.wal"),
    "graph": _put("knowledge_graph.duckdb"),
    "copy": (DirectoryStore, "copy", _any),
    "share": (Incoming, "share", _any),
    "memories": _put("memories.json.gz"),
    "manifest": _put("manifest.json"),
    "request": (NatsVolatileBus, "publish", lambda event: isinstance(event, SyncRequested)),
    "publish": (NatsDurableBus, "publish", _any),
    "prune": (DirectoryStore, "_delete", _any),
}
"""Name -> the call, and which of its calls: those with certain arguments."""

MULTIPART: Mapping[str, tuple[type, str, Callable[..., bool]]] = {
    "created": (SqlitePutJournal, "begin", _any),
    "part": (Multipart, "send", lambda number, *_: number > 1),
    "recorded": (SqlitePutJournal, "add", _any),
    "resume": (Multipart, "_resume", _any),
    "complete": (Multipart, "complete", _any),
    "cleared": (SqlitePutJournal, "clear", _any),
}
"""The same for an object that is sent in parts."""

MIGRATIONS = range(1, len(schema.MIGRATIONS) + 1)


def kill_in_migration(number: int) -> None:
    """Kill the process when the last statement of this migration has been executed, before the commit."""
    migrate, steps = schema.migrate, [*schema.MIGRATIONS]
    steps[number - 1] += ("SELECT kill()",)

    def deadly(connection: sqlite3.Connection) -> None:
        connection.create_function("kill", 0, kill)
        migrate(connection)

    schema.migrate, schema.MIGRATIONS = deadly, tuple(steps)


def main() -> None:
    replace_from_environment()
    name, _, when = sys.argv[1].partition(":")
    if name == "migration":
        kill_in_migration(int(when))
    else:
        owner, method, wanted = {**CALLS, **MULTIPART}[name]
        kill_at(owner, method, f"{method}:{when}", wanted)
    app(sys.argv[2:])


if __name__ == "__main__":
    main()
