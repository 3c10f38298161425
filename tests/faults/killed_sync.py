"""One `akosha-agent sync` that kills itself (SIGKILL) at a named point; a program for tests to run.

    python tests/faults/killed_sync.py POINT PUBLISHED.jsonl [options of `sync`]

POINT is `method:before` or `method:after`, with a method below, or `-` for a sync without a kill. Every result that
reaches the bus is appended to PUBLISHED.jsonl before the call returns, as a consumer would have received it.
"""

import inspect
import os
import signal
import sys
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.directory_store.incoming import Incoming
from agent.adapters.duckdb import MirrorDirectory
from agent.adapters.memory_bus import MemoryDurableBus
from agent.adapters.patches import ZstdPatcher
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain.events import SyncResult
from agent.entrypoints.cli.app import app
from tests.support.constants import replace_from_environment


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner: type, method: str, point: str, wanted=lambda *_: True) -> None:
    """If `point` names the method, kill the process before or after a call of it that `wanted` selects."""
    name, _, when = point.partition(":")
    if name != method:
        return
    original = getattr(owner, method)

    def kill_if(reached: str, *args: object) -> None:
        if when == reached and wanted(*args):
            kill()

    async def deadly(self, *args, **kwargs):
        kill_if("before", *args)
        answer = await original(self, *args, **kwargs)
        kill_if("after", *args)
        return answer

    def deadly_at_once(self, *args):
        kill_if("before", *args)
        answer = original(self, *args)
        kill_if("after", *args)
        return answer

    setattr(owner, method, deadly if inspect.iscoroutinefunction(original) else deadly_at_once)


PATCHED = {
    "make": (ZstdPatcher, "make", lambda *_: True),
    "base": (DirectoryStore, "copy", lambda _source, key, *_: key.endswith(".base")),
    "patch": (DirectoryStore, "put", lambda key, *_: ".patch-" in key),
    "retain": (MirrorDirectory, "retain", lambda *_: True),
}
"""Steps of an upload with a base and patches: the call, and which of its calls."""


def main() -> None:
    replace_from_environment()
    point, published = sys.argv[1], Path(sys.argv[2])
    publish, codec = MemoryDurableBus.publish, CloudEventsCodec()

    async def publish_and_record(self, event):
        await publish(self, event)
        if isinstance(event, SyncResult):
            with published.open("ab") as file:
                file.write(codec.encode(event) + b"\n")

    MemoryDurableBus.publish = publish_and_record
    if point == "record:after":  # the metadata exists, its object does not
        write_record = Incoming._write_record

        def deadly(self, path, record):
            write_record(self, path, record)
            kill()

        Incoming._write_record = deadly
    elif point.startswith("mirror"):
        name, _, when = point.partition(":")
        method = {"mirror": "put", "mirror_record": "_write", "mirror_cleanup": "_remove_others"}[name]
        kill_at(MirrorDirectory, method, f"{method}:{when}")
    elif point.startswith("patched-"):
        name, _, when = point.removeprefix("patched-").partition(":")
        owner, method, wanted = PATCHED[name]
        kill_at(owner, method, f"{method}:{when}", wanted)
    elif point.startswith("put-"):
        kind, _, when = point.partition(":")
        is_manifest = kind == "put-manifest"
        kill_at(DirectoryStore, "put", f"put:{when}", lambda key, *_: key.endswith("manifest.json") == is_manifest)
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
            kill_at(SqliteLedger, method, point)
        kill_at(MemoryDurableBus, "publish", point, lambda event: isinstance(event, SyncResult))
    app(["sync", "--json", *sys.argv[3:]])


if __name__ == "__main__":
    main()
