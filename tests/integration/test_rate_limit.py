"""The upload limit as bootstrap builds it: all uploads share one limiter; without a limit there is none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb import WarmChild
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
async def build_methods(tmp_path) -> AsyncIterator:
    """A function that builds the methods with a limit and returns the store, the sink and the clock."""
    ledgers = []

    async def wire(limit: int, stall_monitor: StallMonitor | None = None, **how: str):
        clock, codec = ManualClock(), CloudEventsCodec()
        target = how or {"cloud_endpoint": f"file://{tmp_path}/bucket"}
        settings = Settings(
            agent_data_dir=tmp_path, agent_state_dir=tmp_path, agent_max_upload_kib_per_s=limit, **target
        )
        home = Home.of(settings)
        ledgers.append(ledger := await SqliteLedger.open(tmp_path / "ledger", codec, clock=clock))
        methods = sync_methods(
            settings,
            home.state,
            Identity("a", "mac"),
            home.taker(),
            home.mirror(),
            WarmChild(clock),
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


async def test_without_a_limit_there_is_no_rate_limiter(build_methods):
    store, sink, _ = await build_methods(0)
    assert (type(store), type(sink)) == (DirectoryStore, AkoshaSink)
    assert store._rate_limiter is sink._rate_limiter is None


async def test_the_limit_is_shared_by_objects_and_memories(build_methods):
    store, sink, _ = await build_methods(100)
    assert store._rate_limiter is sink._rate_limiter
    assert sink._rate_limiter.bytes_per_second == 100 * KIB


async def test_calls_that_upload_nothing_are_not_limited(build_methods):
    store, _, clock = await build_methods(1)
    await store.create("a", bytes(100 * KIB))
    assert len(b"".join([piece async for piece in store.get("a")])) == 100 * KIB
    await store.copy("a", "b", expected=await store.head("a"))
    assert [item.key async for item in store.list("")] == ["a", "b"]
    await store.delete(["a"])
    assert await store.sweep("") == 0
    assert await store.is_available()
    assert clock.monotonic() == 0


async def test_s3_uploads_are_limited_when_bytes_are_sent(build_methods):
    """S3Store buffers parts. A limit before the buffer would cause bursts; a second limit would halve the rate."""
    bucket = {"cloud_bucket": "bucket", "cloud_endpoint": "http://127.0.0.1:9"}
    store, sink, _ = await build_methods(100, **bucket)
    assert type(store) is S3Store
    assert store._writer._rate_limiter is sink._rate_limiter
    store, sink, _ = await build_methods(0, **bucket)
    assert (type(store), store._writer._rate_limiter, type(sink)) == (S3Store, None, AkoshaSink)


async def test_a_push_delayed_by_the_limit_does_not_count_as_stalled(build_methods):
    stall_monitor = StallMonitor()
    _, sink, _ = await build_methods(100, stall_monitor)
    assert sink._waiting == stall_monitor.restart_limits


@pytest.mark.parametrize("limit", [0, 100], ids=["no-limit", "limit"])
async def test_stores_and_sinks_with_connections_are_registered_with_the_stall_monitor(build_methods, limit):
    stall_monitor = StallMonitor()
    await build_methods(limit, stall_monitor, cloud_bucket="bucket", cloud_endpoint="http://127.0.0.1:9")
    assert sorted(type(one).__name__ for one in stall_monitor._connected) == ["AkoshaSink", "S3Store"]
    await stall_monitor.tighten()  # before the first request there is no connection to drop


async def test_an_upload_takes_the_time_that_the_limit_implies(build_methods, tmp_path):
    store, _, clock = await build_methods(64)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(128 * KIB)

    put = store.put("systems/mac/a", body(), metadata={}, part_bytes=2**23, progress=lambda _: None)
    work = asyncio.create_task(put)
    while not work.done():
        await asyncio.wait({work}, timeout=0.001)  # let the work in threads finish
        await clock.advance(clock.next_due or 0)
    assert work.result().size == 640 * KIB
    assert abs(clock.monotonic() - 10) < 0.3
    assert [path.stat().st_size for path in Path(tmp_path, "bucket").rglob("a")] == [640 * KIB]
