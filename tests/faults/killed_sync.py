"""One `akosha-agent sync` that kills itself (SIGKILL) at a named point; a program for tests to run.

    python tests/faults/killed_sync.py POINT PUBLISHED.jsonl [options of `sync`]

POINT is `method:before` or `:after` of one of the calls below, or `-` for a run to the end. Every event that
reaches the bus is appended to PUBLISHED.jsonl before the call returns, as a consumer would have seen it.
"""

import os
import signal
import sys
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.directory_store.incoming import Incoming
from agent.adapters.memory_bus import MemoryBus
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain.events import SyncResult
from agent.entrypoints.cli.app import app


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mine(owner: type, method: str, point: str, wanted=lambda *_: True) -> None:
    """Kill before or after the calls of `owner.method` that `wanted` picks, if `point` names them."""
    name, _, when = point.partition(":")
    if name != method:
        return
    original = getattr(owner, method)

    async def deadly(self, *args, **kwargs):
        if when == "before" and wanted(*args):
            kill()
        answer = await original(self, *args, **kwargs)
        if wanted(*args):
            kill()
        return answer

    setattr(owner, method, deadly)


def main() -> None:
    point, published = sys.argv[1], Path(sys.argv[2])
    publish, codec = MemoryBus.publish, CloudEventsCodec()

    async def reported(self, event):
        await publish(self, event)
        if isinstance(event, SyncResult):
            with published.open("ab") as file:
                file.write(codec.encode(event) + b"\n")

    MemoryBus.publish = reported
    if point == "record:after":  # the metadata is there, its object is not
        write_record = Incoming._write_record

        def deadly(self, place, record):
            write_record(self, place, record)
            kill()

        Incoming._write_record = deadly
    elif point.startswith("put-"):
        kind, _, when = point.partition(":")
        is_manifest = kind == "put-manifest"
        mine(DirectoryStore, "put", f"put:{when}", lambda key, *_: key.endswith("manifest.json") == is_manifest)
    else:
        for method in (
            "mark_owed",
            "begin",
            "deliver",
            "confirm",
            "count_attempt",
            "give_up",
            "abandon",
            "mark_unchanged",
            "adopt",
        ):
            mine(SqliteLedger, method, point)
        mine(MemoryBus, "publish", point, lambda event: isinstance(event, SyncResult))
    app(["sync", "--json", *sys.argv[3:]])


if __name__ == "__main__":
    main()
