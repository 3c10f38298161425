"""Connections that die silently, with real sockets and servers: a network change replaces them within seconds."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog

from agent.adapters.akosha import AkoshaSink
from agent.adapters.nats import Patience, connection
from agent.adapters.s3 import S3Store
from agent.application.agent import Agent
from agent.application.sync.stall import StallMonitor, StallTimeout, limit_stalls
from agent.application.triggers import network_changes
from agent.bootstrap import agent as agent_bootstrap
from agent.bootstrap.home import Home
from agent.domain.events import SyncFailed, SyncResult, SyncSucceeded
from agent.domain.identity import Identity
from agent.ports import NetworkChange
from agent.settings import Settings
from tests.support import session_buddy
from tests.support.machine import NO_AKOSHA
from tests.support.memories import memory
from tests.support.nats_bus import SECONDS, RecordingHandler, ended, opened_buses, until
from tests.support.servers.akosha import Akosha
from tests.support.servers.faulty_proxy import stall
from tests.support.servers.link import Link
from tests.support.values import SYSTEM

pytest_plugins = ["tests.support.servers.fixtures"]

MIB = 2**20
IDENTITY = Identity("agent-1", "laptop")


def open_link(url: str, **options: int) -> Link:
    return Link(urlsplit(url).port, **options)


@contextlib.asynccontextmanager
async def open_store(link: Link, server) -> AsyncIterator[S3Store]:
    store = S3Store(bucket=server.new_bucket(), endpoint=f"http://127.0.0.1:{link.port}", region="auto")
    try:
        yield store
    finally:
        await store.aclose()


async def put(store, data: bytes, moved=lambda _: None, key: str = "a") -> None:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(data), MIB):
            yield data[start : start + MIB]

    await store.put(key, body(), metadata={}, part_bytes=16 * MIB, progress=moved)


async def test_idle_connections_to_the_store_are_not_reused(aws, rclone):
    async with open_link(rclone.endpoint) as link, open_store(link, rclone) as store, asyncio.timeout(60):
        await put(store, b"one")
        assert link.connections == 1
        link.lose()
        await store.drop_idle_connections()
        await put(store, b"two")
        assert b"".join([piece async for piece in store.get("a")]) == b"two"
        assert link.connections == 2


async def test_an_unused_store_has_no_idle_connections_to_drop(aws, moto):
    async with open_link(moto.endpoint) as link, open_store(link, moto) as store:
        await store.drop_idle_connections()
        assert link.connections == 0


@pytest.mark.long
async def test_a_slow_upload_with_progress_keeps_its_connection(aws, moto):
    """For longer than the stall limit, which is longer than the pause between two steps on a busy machine."""
    stall_monitor, data = StallMonitor(tight_seconds=7, tight_for_seconds=600), random.Random(1).randbytes(12 * MIB)
    async with open_link(moto.endpoint, bytes_per_second=MIB) as link, open_store(link, moto) as store:
        stall_monitor.register(store)
        loop, moves = asyncio.get_running_loop(), []

        async def upload() -> None:
            async with limit_stalls(60, stall_monitor) as moved:

                def progress(_: int) -> None:
                    moves.append(loop.time())
                    moved()

                await put(store, data, progress)

        task = asyncio.create_task(upload())
        await until(lambda: moves)
        await stall_monitor.tighten()
        await task
        assert moves[-1] - moves[0] > 7
        assert link.connections == 1


async def test_a_request_on_a_dead_connection_times_out_and_the_next_works(aws, rclone):
    stall_monitor = StallMonitor(tight_seconds=0.3, tight_for_seconds=60)
    async with open_link(rclone.endpoint) as link, open_store(link, rclone) as store, asyncio.timeout(60):
        stall_monitor.register(store)
        await put(store, b"stored")
        link.lose()
        task = asyncio.create_task(_get(store, stall_monitor))
        await until(lambda: link.swallowed)
        await stall_monitor.tighten()
        with pytest.raises(StallTimeout):
            await task
        assert await _get(store, stall_monitor) == b"stored"


async def _get(store: S3Store, stall_monitor: StallMonitor) -> bytes:
    async with limit_stalls(300, stall_monitor):
        return b"".join([piece async for piece in store.get("a")])


async def test_idle_connections_to_akosha_are_not_reused_and_the_session_continues():
    with Akosha() as akosha:
        async with open_link(akosha.url) as link, asyncio.timeout(60):
            sink = AkoshaSink(endpoint=f"http://127.0.0.1:{link.port}/mcp", timeout_seconds=10)
            try:
                await sink.drop_idle_connections()
                await sink.connect()
                link.lose()
                await sink.drop_idle_connections()
                assert await sink.is_available()
                assert (await sink.store([sink.pack(memory(1), SYSTEM)])).stored == 1
                assert (link.swallowed, akosha.handshakes) == (0, 1)
                assert link.connections > 1
            finally:
                await sink.aclose()


@pytest.fixture
def short_ping_timeout(monkeypatch):
    monkeypatch.setattr(connection, "SHORT_PING_TIMEOUT_SECONDS", 0.3)


PATIENT = {"ping": 600, "ping_timeout": 600, "reconnect": 600, "reconnect_max": 600}


@pytest.mark.long
async def test_a_dead_nats_connection_is_replaced_after_a_network_change(fresh_nats, short_ping_timeout):
    """An event that the server sends to the lost connection is delivered again within seconds."""
    patience = PATIENT | {"ack_wait": Patience().ack_wait}
    async with (
        open_link(fresh_nats.url) as link,
        opened_buses(f"nats://127.0.0.1:{link.port}", patience=patience) as buses,
    ):
        inbox = RecordingHandler()
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        link.lose()
        buses.durable.check_connection()
        async with asyncio.timeout(SECONDS):
            await until(lambda: not buses.durable.state.ready)
            await buses.durable.wait_until_ready()
            await buses.durable.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


async def test_a_network_change_shortens_the_wait_for_a_pending_ping(fresh_nats, short_ping_timeout):
    async with (
        open_link(fresh_nats.url) as link,
        opened_buses(f"nats://127.0.0.1:{link.port}", patience=PATIENT) as buses,
    ):
        link.lose()
        buses._connection.suspect(buses._connection.client())
        await until(lambda: buses._connection._ping_deadline)
        buses.durable.check_connection()
        async with asyncio.timeout(SECONDS):
            await until(lambda: not buses.durable.state.ready)
            await buses.durable.wait_until_ready()


async def test_a_live_nats_connection_survives_network_changes(fresh_nats, monkeypatch):
    monkeypatch.setattr(connection, "SHORT_PING_TIMEOUT_SECONDS", SECONDS)
    async with (
        open_link(fresh_nats.url) as link,
        opened_buses(f"nats://127.0.0.1:{link.port}", patience=PATIENT) as buses,
    ):
        client = buses._connection.client()
        for _ in range(3):
            buses.durable.check_connection()
            await until(lambda: not buses._connection._skip_pause.is_set())
        assert buses._connection.client() is client
        assert link.connections == 1


async def test_a_network_change_ends_the_pause_before_a_reconnect(fresh_nats):
    async with open_link(fresh_nats.url) as link:
        link.close()
        async with opened_buses(f"nats://127.0.0.1:{link.port}", patience=PATIENT, ready=False) as buses:
            assert not buses.durable.state.ready
            await link.open()
            buses.durable.check_connection()
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()


class FakeNetworkMonitor:
    """A network monitor whose changes a test puts into a queue."""

    def __init__(self, *_: object) -> None:
        self.queue: asyncio.Queue[NetworkChange] = asyncio.Queue()

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        while True:
            yield await self.queue.get()


@contextlib.asynccontextmanager
async def running_agent(tmp_path: Path, endpoint: str, bucket: str, monkeypatch) -> AsyncIterator[tuple[Agent, list]]:
    """A running agent and its events. After a network change, a stall is cut off after half a second."""
    monkeypatch.setattr("agent.adapters.network_monitor.MachineNetworkMonitor", FakeNetworkMonitor)
    monkeypatch.setattr(agent_bootstrap, "StallMonitor", lambda: StallMonitor(tight_seconds=0.5))
    monkeypatch.setattr(network_changes, "FIRST_PAUSE_SECONDS", 0.5)
    session_buddy.create(tmp_path / "data", commits=3, entities=2)
    home = Home.of(
        Settings(
            cloud_bucket=bucket, cloud_endpoint=endpoint, cloud_region="us-east-1", http_endpoint=NO_AKOSHA,
            enable_fallback=False, max_retries=0, agent_data_dir=tmp_path / "data", agent_state_dir=tmp_path / "state",
        )
    )  # fmt: skip
    home.state.prepare()
    events: list = []

    async def record(event) -> None:
        events.append(event)

    async with await agent_bootstrap.build(home, IDENTITY) as agent:
        await agent.bus.subscribe("akosha.sync.>", record)
        monkeypatch.setattr(agent.results_bus, "publish", record)
        task = asyncio.create_task(agent.run())
        try:
            yield agent, events
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def wait_until_reported(events: list, kind: type, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not any(isinstance(event, kind) for event in events):
            await asyncio.sleep(0.02)


@pytest.mark.long
async def test_network_changes_trigger_a_retry_and_restart_a_stalled_upload(tmp_path, proxy, moto, monkeypatch):
    """The network fails, and the next retry is due in 30 s. It returns, fails during the upload, and returns again."""
    async with open_link(proxy.url) as link:
        link.close()
        with structlog.testing.capture_logs() as logged:
            async with running_agent(tmp_path, f"http://127.0.0.1:{link.port}", moto.new_bucket(), monkeypatch) as (
                agent,
                events,
            ):
                await wait_until_reported(events, SyncFailed)
                reached = asyncio.Event()
                proxy.on("put_object", stall(reached, at=1), times=1)
                await link.open()
                await agent.network_changes.network_monitor.queue.put(NetworkChange.MOVED)
                async with asyncio.timeout(60):
                    await reached.wait()
                link.lose()
                await agent.network_changes.network_monitor.queue.put(NetworkChange.WOKE)
                await wait_until_reported(events, SyncSucceeded)
                record = await agent.ledger.record(agent.methods["cloud"].target)
        assert (record.failures, record.attempts) == (0, 0)
        names = [line["event"] for line in logged]
        assert names.count("sync_restarted") == 1
        assert names.count("network_changed") == 2
        assert "sync_retry_scheduled" not in names
        assert [type(event) for event in events if isinstance(event, SyncResult)] == [SyncFailed, SyncSucceeded], (
            "the attempt did not wait for the retry that was due in 30 s"
        )
