"""One `akosha-agent run` on NATS that kills itself (SIGKILL) at a named point; a program for tests to run.

    python tests/faults/killed_run.py POINT [options of `run`]

POINT is `method:before` or `method:after`, with a method below. `publish` is that of a result, `ack` that of a request.
"""

import sys

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.nats.bus import NatsBus
from agent.adapters.nats.messages import JetStreamMessage
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.domain.events import SyncResult
from agent.entrypoints.cli.app import app
from tests.faults.killed_sync import kill_at


def main() -> None:
    point = sys.argv[1]
    name, _, when = point.partition(":")
    if name == "manifest":
        kill_at(DirectoryStore, "put", f"put:{when}", lambda key, *_: key.endswith("manifest.json"))
    for method in ("deliver", "confirm"):
        kill_at(SqliteLedger, method, point)
    kill_at(NatsBus, "publish", point, lambda event: isinstance(event, SyncResult))
    kill_at(JetStreamMessage, "ack", point)
    app(["run", *sys.argv[2:]])


if __name__ == "__main__":
    main()
