"""The http method, compared with a loop over the MCP SDK's client; and its syncs with few or no new memories.

    python -m tests.bench.http_push FILE FIRST COUNT

adds COUNT conversations to a database, numbered from FIRST, in a separate process.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters.akosha import AkoshaSink
from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbSnapshotTaker
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.memories.push import MAX_BATCH_BYTES, MemoryPush
from agent.application.sync.http import HttpSync
from agent.domain.delivery_state import Target
from agent.domain.events import SyncRequested
from agent.domain.memories import Memory
from agent.domain.routing import HTTP, MANUAL
from agent.ports import Delivered
from tests.bench.pipeline import ByteCounter
from tests.bench.report import Line, seconds
from tests.interop.real import interpreter, running_akosha
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha
from tests.support.session_buddy import REFLECTION

ROOT = Path(__file__).parents[2]
RATIO_BAR = 1.15
COUNT = 1000
BATCH = 500
UNCHANGED_BAR_SECONDS = 1.0
LARGE = 20_000
NEW = 50
_PROBE = "batch_store_memories of 1"

Sender = Callable[[str], Awaitable[float]]
"""Sends the memories to the server under the ID of a new system; returns the seconds it took."""

_TABLE = """CREATE TABLE IF NOT EXISTS base.conversations_v2(id VARCHAR PRIMARY KEY, content VARCHAR NOT NULL,
    embedding FLOAT[384], category VARCHAR NOT NULL, importance_score FLOAT, memory_tier VARCHAR, access_count INTEGER,
    project VARCHAR, "timestamp" TIMESTAMP, session_id VARCHAR, metadata VARCHAR)"""
_POOL = """CREATE TEMP TABLE pool AS SELECT k, list_transform(range(384), lambda i: (random() - 0.5)::FLOAT)::FLOAT[384]
    AS embedding FROM range(512) AS numbers(k)"""
_ROWS = """INSERT INTO base.conversations_v2 SELECT md5('c' || n)[:16],
    'Number ' || n || ': ' || repeat(md5('t' || n) || ' ', 12), embedding, 'general', 0.5, 'long_term', 0,
    'project-' || n % 5, TIMESTAMP '2025-01-01' + to_minutes((n % 500000)::BIGINT), md5('s' || n // 40),
    '{"n": ' || n || '}' FROM range(?, ?) AS numbers(n) JOIN pool ON k = n % 512"""


def add(path: Path, first: int, count: int) -> None:
    """Add conversations first, first + 1, ... to a database; create it if it does not exist."""
    command = [sys.executable, "-m", "tests.bench.http_push", str(path), str(first), str(count)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""})


class Senders:
    """Two ways to send the memories of a database to a server."""

    def __init__(self, url: str, data_dir: Path, folder: Path) -> None:
        self._url, self._data_dir, self._folder = url, data_dir, folder
        self._memories: list[Memory] = []
        self._pack = AkoshaSink(endpoint=url).pack

    async def prepare(self) -> None:
        """Read the memories, and send them once both ways to import all modules."""
        async with DuckdbMemoryReader().open(self._data_dir / REFLECTION, "reflection", zone=UTC) as source:
            async for page in source.pages():
                self._memories += [memory async for memory in source.read(page)]
        for send in (self.bare, self.agent):
            await send(f"before-{send.__name__}")

    async def bare(self, system_id: str) -> float:
        """Call the tool in a loop with prepared batches: the fastest that a program with the SDK's client can be."""
        from mcp import ClientSession
        from mcp.client.streamable_http import streamable_http_client

        batches = list(self._batches(system_id))
        started = time.perf_counter()
        async with streamable_http_client(self._url) as (read, write, *_), ClientSession(read, write) as session:
            await session.initialize()
            for batch in batches:
                answer = await session.call_tool("batch_store_memories", {"memories": batch})
                if answer.structured_content["stored"] != len(batch):
                    raise RuntimeError(f"not all memories were stored: {answer}")
        return time.perf_counter() - started

    async def agent(self, system_id: str) -> float:
        """Sync by the http method, from the fingerprint of the database to the write to the ledger."""
        async with self._method(system_id) as method:
            started = time.perf_counter()
            result = await method.sync(_request(system_id), ByteCounter())
            took = time.perf_counter() - started
        if not isinstance(result, Delivered) or result.result.memories != len(self._memories or range(COUNT)):
            raise RuntimeError(f"not all memories were delivered: {result}")
        return took

    @asynccontextmanager
    async def _method(self, system_id: str) -> AsyncIterator[HttpSync]:
        folder = self._folder / system_id
        folder.mkdir(parents=True)
        clock = SystemClock()
        ledger = await SqliteLedger.open(folder / "ledger.sqlite3", CloudEventsCodec(), clock=clock)
        sink = AkoshaSink(endpoint=self._url)
        method = HttpSync(
            target=Target(HTTP, self._url, "", system_id),
            push=MemoryPush(
                sink=sink, ledger=ledger.memories(), clock=clock, batch_size=BATCH, missing_embedding="wait"
            ),
            taker=DuckdbSnapshotTaker(self._data_dir, folder / "staging", clock=clock),
            reader=DuckdbMemoryReader(),
            ledger=ledger,
            clock=clock,
            zone=lambda: UTC,
            standstill_seconds=300,
        )
        try:
            yield method
        finally:
            await method.aclose()
            await ledger.aclose()

    def _batches(self, system_id: str) -> Iterator[list[dict[str, object]]]:
        """Yield the batches that the agent sends, in the form that the SDK's client accepts."""
        batch: list[dict[str, object]] = []
        size = 0
        for memory in self._memories:
            body = self._pack(memory, system_id).body
            if batch and (len(batch) == BATCH or size + len(body) > MAX_BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(json.loads(body))
            size += len(body)
        yield batch


async def against_the_sdk(folder: Path, pairs: int) -> list[Line]:
    """Send the same memories to the same server both ways, in turns."""
    data_dir = folder / "data"
    data_dir.mkdir(parents=True)
    await asyncio.to_thread(add, data_dir / REFLECTION, 0, COUNT)
    times: dict[str, list[float]] = {"bare": [], "agent": []}
    with _server(folder) as (name, url):
        senders = Senders(url, data_dir, folder / "agent")
        await senders.prepare()
        both: Sequence[tuple[str, Sender]] = (("bare", senders.bare), ("agent", senders.agent))
        for number in range(pairs):
            for sender, send in both if number % 2 else reversed(both):
                times[sender].append(await send(f"{sender}-{number}"))
    ratios = [agent / bare for bare, agent in zip(times["bare"], times["agent"], strict=True)]
    ratio = statistics.median(ratios)
    return [
        Line(f"{COUNT:,} memories to {name}: a loop over the MCP SDK's client", seconds(times["bare"])),
        Line(
            f"{COUNT:,} memories to {name}: the http method, with snapshot and ledger",
            seconds(times["agent"]),
            ratio,
            f"within {RATIO_BAR} x the loop",
            ratio <= RATIO_BAR,
        ),
    ]


def few_changes(folder: Path, rounds: int) -> list[Line]:
    """Sync a large database unchanged, then with a few new rows. Raises RuntimeError if a result is unexpected."""
    with Akosha() as akosha:
        machine = Machine(folder, force_method="http", http_endpoint=akosha.url, cloud_endpoint=None)
        add(machine.data / REFLECTION, 0, LARGE)
        _synced(machine, LARGE)
        akosha.requests.clear()
        akosha.calls.clear()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            _synced(machine, 0)
            times.append(time.perf_counter() - started)
        requests = {f"{request.method} {request.path}" for request in akosha.requests}
        probes = [f"{call.tool} of {call.size}" for call in akosha.calls]
        add(machine.data / REFLECTION, LARGE, NEW)
        akosha.calls.clear()
        started = time.perf_counter()
        _synced(machine, NEW)
        took, calls = time.perf_counter() - started, [f"{call.tool} of {call.size}" for call in akosha.calls]
    what = f"sync of {LARGE:,} memories"
    return [
        Line(
            f"{what}, unchanged: the command",
            seconds(times),
            statistics.median(times) / UNCHANGED_BAR_SECONDS,
            f"under {UNCHANGED_BAR_SECONDS:g} s",
            statistics.median(times) < UNCHANGED_BAR_SECONDS,
        ),
        Line(
            f"{what}, unchanged: requests",
            ", ".join(sorted(requests)) or "none",
            None,
            "the health check, and one known memory that confirms that the server has them",
            requests <= {"GET /health", "POST /mcp", "DELETE /mcp"} and set(probes) <= {_PROBE},
        ),
        Line(
            f"{what}, {NEW} of them new: calls",
            f"{', '.join(calls)}; {took:.2f} s",
            None,
            "one batch, beside the memory that confirms",
            [call for call in calls if call != _PROBE] == [f"batch_store_memories of {NEW}"],
        ),
    ]


def _synced(machine: Machine, count: int) -> None:
    result = machine.sync("--method", "http")
    if result["outcome"] != ("succeeded" if count else "skipped") or (result.get("memories") or 0) != count:
        raise RuntimeError(f"sync of {count} memories: {result}")


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run Akosha if AKOSHA_PYTHON is set, else a stand-in; yield its name and URL."""
    if interpreter():
        with running_akosha(folder / "akosha") as akosha:
            yield "Akosha", akosha.url
        return
    command = [sys.executable, str(ROOT / "tests/support/servers/akosha_main.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield "the stand-in", process.stdout.readline().strip()
        finally:
            process.stdin.close()


def _request(system_id: str) -> SyncRequested:
    name = str(uuid.uuid4())
    return SyncRequested(
        id=f"{name}.{HTTP}",
        time=datetime.now(UTC),
        system_id=system_id,
        request_id=name,
        agent_id=uuid.uuid4().hex,
        reason=MANUAL,
        route=(HTTP,),
    )


def _add(path: Path, first: int, count: int) -> None:
    import duckdb

    with duckdb.connect(":memory:") as engine:
        engine.execute("SET memory_limit = '1GB'")
        engine.execute("SELECT setseed(0.25)")
        # The storage version that Session-Buddy's engine writes.
        engine.execute(f"ATTACH '{path}' AS base (STORAGE_VERSION 'v1.0.0')")
        engine.execute(_TABLE)
        engine.execute(_POOL)
        engine.execute(_ROWS, [first, first + count])
        engine.execute("CHECKPOINT base")


if __name__ == "__main__":
    _add(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
