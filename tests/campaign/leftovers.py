"""What a fault must not leave behind: files, child processes, descriptors, memory, and secrets where they can be read.

Each function yields a sentence for each thing that is there now; `lasting` drops what is gone soon.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from agent.adapters.directory_store.layout import incoming_folder
from tests.campaign.usage import Usage
from tests.campaign.world import World
from tests.support.files import files_in
from tests.support.processes import open_databases
from tests.support.waiting import happens

LASTING_SECONDS = 30.0
"""How long something may be left: longer than a sync or a prune that runs when things are calm."""

MEMORY_BYTES = 64 * 2**20
"""How much more memory of its own the agent may use than when it was calm for the first time."""

OWN_FILES = re.compile(
    r"agent\.lock|identity\.(json|lock)|system-id|control\.sock|http-token|page\.json|verifying/lock|log/agent\.log"
    r"|ledger\.sqlite(-wal|-shm)?(\.damaged-[0-9TZ-]+(-wal|-shm)?)?"
    r"|mirror/[^/]+/(record|[0-9a-f]{64})"
)
"""The files that stay in the state directory."""


def lasting(problems: Callable[[], Iterable[str]]) -> list[str]:
    """Return the problems that do not disappear within LASTING_SECONDS."""
    found: list[str] = []

    def none_left() -> bool:
        found[:] = problems()
        return not found

    happens(none_left, LASTING_SECONDS)
    return found


def files(world: World) -> Iterator[str]:
    """No copy, draft, note or other temporary file is left."""
    state, incoming = world.machine.state, incoming_folder(world.machine.bucket, "systems")
    names = (str(path.relative_to(state)) for path in files_in(state))
    yield from (f"left in the state directory: {name}" for name in names if not OWN_FILES.fullmatch(name))
    drafts = (path.relative_to(world.machine.bucket) for path in files_in(incoming))
    yield from (f"left in the bucket's directory: {path}" for path in drafts)


def children(world: World) -> Iterator[str]:
    """At most one child process waits for the next sync, and has no copy open; a rescan may use it at any moment."""
    found = world.children("duckdb.child") if world.agent is not None else []
    yield from (f"child process still runs: {child}" for child in found[1:])
    for child in found:
        with suppress(FileNotFoundError):
            yield from (f"child process has {name} open" for name in open_databases(child.pid))


def growth(world: World) -> Iterator[str]:
    """Neither descriptors nor memory grow while an agent runs."""
    if world.agent is None:
        return
    if world.first_usage is None or world.first_usage.pid != world.agent.pid:
        world.first_usage = Usage.of(world.agent.pid)
    first, now = world.first_usage, Usage.of(world.agent.pid)
    yield from (f"descriptors stay open: {more}" for more in first.more_descriptors())
    if now.memory > first.memory + MEMORY_BYTES:
        yield f"memory has grown from {first.memory / 2**20:.0f} to {now.memory / 2**20:.0f} MiB"


def secrets(world: World) -> Iterator[str]:
    """No secret is in a log, an event, a metric, the state directory or the bucket."""
    for name, read in _places(world):
        with suppress(OSError, EOFError, zlib.error):  # damaged objects are reported by `checks`
            data = read()
            data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
            yield from (f"{name} has {secret[:6]}..." for secret in world.machine.secrets if secret.encode() in data)


def _places(world: World) -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "the log", world.transcript.encode
    yield "an event", lambda: b"\n".join(world.listener.raw)
    for path in ("/metrics", "/v1/status"):
        yield path, lambda path=path: world.get(path) or b""
    for path in files_in(world.machine.state):
        if path.is_file() and "staging" not in path.parts:
            yield str(path.relative_to(world.machine.state)), path.read_bytes
    keys = world.target.keys
    yield from ((key, lambda key=key: world.target.fetch(key)) for key in keys if key not in world.searched)
    world.searched.update(keys)
