"""The upload limit as it is wired: nothing in between without one; with one, all that uploads shares it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb import WarmChildren
from agent.adapters.s3 import S3Store
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.stall import StallMonitor
from agent.bootstrap.home import Home
from agent.bootstrap.methods import sync_methods
from agent.domain.identity import Identity
from agent.settings import Settings
from tests.support.clock import ManualClock

KIB = 1024


@pytest.fixture
async def wired(tmp_path) -> AsyncIterator:
    """A function that wires the methods for a limit, and returns the cloud's store, the server's sink, the clock."""
    ledgers = []

    async def wire(limit: int, stall_monitor: StallMonitor | None = None, **how: str):
        clock, codec = ManualClock(), CloudEventsCodec()
        where = how or {"cloud_endpoint": f"file://{tmp_path}/bucket"}
        settings = Settings(
            agent_data_dir=tmp_path, agent_state_dir=tmp_path, agent_max_upload_kib_per_s=limit, **where
        )
        home = Home.of(settings)
        ledgers.append(ledger := await SqliteLedger.open(tmp_path / "ledger", codec, clock=clock))
        methods = sync_methods(
            settings,
            home.state,
            Identity("a", "mac"),
            home.taker(),
            WarmChildren(),
            ledger,
            clock,
            home.machine(),
            stall_monitor,
        )
        cloud, http = methods["cloud"], methods["http"]
        return cloud._store, http._push.sink, clock

    yield wire
    for ledger in ledgers:
        await ledger.aclose()


async def test_without_a_limit_nothing_waits(wired):
    store, sink, _ = await wired(0)
    assert (type(store), type(sink)) == (DirectoryStore, AkoshaSink)
    assert store._rate_limiter is sink._rate_limiter is None


async def test_with_one_it_is_shared_by_objects_and_memories(wired):
    store, sink, _ = await wired(100)
    assert store._rate_limiter is sink._rate_limiter
    assert sink._rate_limiter.bytes_per_second == 100 * KIB


async def test_what_is_no_upload_is_not_limited(wired):
    store, _, clock = await wired(1)
    await store.create("a", bytes(100 * KIB))
    assert len(b"".join([piece async for piece in store.get("a")])) == 100 * KIB
    await store.copy("a", "b", expected=await store.head("a"))
    assert [item.key async for item in store.list("")] == ["a", "b"]
    await store.delete(["a"])
    assert await store.sweep("") == 0
    assert await store.is_available()
    assert clock.monotonic() == 0


async def test_a_bucket_limits_its_bytes_as_they_leave(wired):
    """It gathers parts: paid for before, they would go out in bursts; paid for twice, at half the limit."""
    bucket = {"cloud_bucket": "bucket", "cloud_endpoint": "http://127.0.0.1:9"}
    store, sink, _ = await wired(100, **bucket)
    assert type(store) is S3Store
    assert store._writer._rate_limiter is sink._rate_limiter
    store, sink, _ = await wired(0, **bucket)
    assert (type(store), store._writer._rate_limiter, type(sink)) == (S3Store, None, AkoshaSink)


async def test_who_is_held_back_with_memories_does_not_count_as_standing_still(wired):
    stall_monitor = StallMonitor()
    _, sink, _ = await wired(100, stall_monitor)
    assert sink._waiting == stall_monitor.restart_limits


@pytest.mark.parametrize("limit", [0, 100], ids=["no-limit", "limit"])
async def test_who_keeps_connections_is_known_to_the_footing(wired, limit):
    stall_monitor = StallMonitor()
    await wired(limit, stall_monitor, cloud_bucket="bucket", cloud_endpoint="http://127.0.0.1:9")
    assert sorted(type(one).__name__ for one in stall_monitor._connected) == ["AkoshaSink", "S3Store"]
    await stall_monitor.tighten()  # before the first request: there is nothing to let go of


async def test_a_real_object_takes_the_time_that_the_limit_gives_it(wired, tmp_path):
    store, _, clock = await wired(64)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(128 * KIB)

    put = store.put("systems/mac/a", body(), metadata={}, part_bytes=2**23, progress=lambda _: None)
    work = asyncio.create_task(put)
    while not work.done():
        await asyncio.wait({work}, timeout=0.001)  # what it does in threads is done
        await clock.advance(clock.next_due or 0)
    assert work.result().size == 640 * KIB
    assert abs(clock.monotonic() - 10) < 0.3
    assert [path.stat().st_size for path in Path(tmp_path, "bucket").rglob("a")] == [640 * KIB]
