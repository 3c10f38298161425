"""The ingest service as bootstrap builds it, with a directory and a fake Akosha server."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.application.ingest.service import systems_in
from agent.bootstrap import methods
from agent.bootstrap.home import Home
from agent.bootstrap.ingest import open_ingest_service
from agent.settings import Settings
from tests.support.memory_store import MemoryStore
from tests.support.sender import Sender
from tests.support.servers.akosha import Akosha


@pytest.fixture
def akosha():
    with Akosha() as akosha:
        yield akosha


@pytest.fixture
def bucket(tmp_path):
    return DirectoryStore(tmp_path / "bucket")


@pytest.fixture
def home(tmp_path, akosha, monkeypatch):
    monkeypatch.setattr(methods, "BATCH_SIZE", 3)
    settings = Settings(
        cloud_endpoint=(tmp_path / "bucket").as_uri(),
        http_endpoint=akosha.url,
        agent_state_dir=tmp_path / "state",
        agent_data_dir=tmp_path / "data",
        agent_rescan_seconds=0.05,
    )
    return Home.of(settings)


@asynccontextmanager
async def wired(home, *systems):
    identity = await asyncio.to_thread(home.prepare)
    async with open_ingest_service(home, identity, systems) as service:
        yield service


async def test_two_systems_with_the_same_rows_are_ingested_once_each(home, akosha, bucket, tmp_path):
    for system in ("laptop", "laptop-2"):
        await Sender(bucket, tmp_path / "scratch", system=system).upload(0, range(1, 6))
    async with wired(home) as service:
        assert (await service.once()).success
    assert (len(akosha.rows("laptop")), len(akosha.rows("laptop-2"))) == (5, 5)
    akosha.requests.clear()
    async with wired(home) as service:
        summary = await service.once()
    assert (summary.success, [caught.ingested for caught in summary.outcomes.values()], akosha.requests) == (
        True,
        [0, 0],
        [],
    )


async def test_an_akosha_restart_during_ingest_loses_nothing(home, akosha, bucket, tmp_path):
    systems = [f"s-{number}" for number in range(6)]
    for system in systems:
        sender = Sender(bucket, tmp_path / "scratch", system=system)
        await sender.upload(0, range(1, 8))
        await sender.upload(1, range(1, 9), new=[8], base=0)
    several_calls = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count_calls(_tool, _arguments):
        if len(akosha.calls) >= 5:  # several calls run concurrently
            loop.call_soon_threadsafe(several_calls.set)

    akosha.interfere = count_calls
    async with wired(home) as service, asyncio.timeout(60):
        running = asyncio.create_task(service.run())
        await several_calls.wait()
        await asyncio.to_thread(akosha.stop)
        await asyncio.to_thread(akosha.start)
        while len(akosha.rows()) < 6 * 8:
            assert not running.done()
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait({running})
    assert all(len(akosha.ids(system)) == 8 for system in systems)


@pytest.mark.parametrize("kind", ["directory", "memory"])
async def test_systems_are_found_despite_similar_names_and_other_objects(kind, bucket, tmp_path):
    store = bucket if kind == "directory" else MemoryStore()
    names = ["S", "S-1", "S0", "S_1", "a", "aa"]
    for name in names:
        await Sender(store, tmp_path / "scratch", system=name).upload(0, [1])

    async def body():
        yield b""

    for key in ("systems/stray", "systems/not.a.system/x", "other/S9/uploads/x"):
        await store.put(key, body(), metadata={}, part_bytes=5, progress=lambda _count: None)
    assert sorted(await systems_in(store)) == names
