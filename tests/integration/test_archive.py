"""The agent's own verification, with all its parts, and the MCP tool for restore points."""

import asyncio

import pytest

from agent.application.archive import verify_loop
from agent.bootstrap import agent as agent_bootstrap, home as home_bootstrap
from agent.bootstrap.home import Home
from agent.bootstrap.stores import object_store
from agent.domain.events import SyncAsked, SyncSucceeded, UploadVerified
from agent.domain.identity import Identity
from agent.entrypoints.archive import record_events
from agent.entrypoints.mcp.tools import RESTORE_POINTS, call_tool
from agent.entrypoints.status_view import gather_status
from agent.settings import Loaded, Settings
from tests.support import session_buddy

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    taker = home_bootstrap.DuckdbSnapshotTaker
    monkeypatch.setattr(home_bootstrap, "DuckdbSnapshotTaker", lambda *a, **how: taker(*a, verify=False, **how))
    monkeypatch.setattr(verify_loop, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(verify_loop, "BUSY_SECONDS", 1.0)
    session_buddy.create(tmp_path / "data", commits=4, entities=2)
    return Home.of(
        Settings(
            cloud_endpoint=(tmp_path / "bucket").as_uri(),
            agent_data_dir=tmp_path / "data",
            agent_state_dir=tmp_path / "state",
            enable_fallback=False,
            system_id="laptop",
        )
    )


async def synced(home: Home, identity: Identity) -> str:
    ask = SyncAsked(id="ask", time=home.clock.now(), system_id="laptop")
    async with await agent_bootstrap.build(home, identity, single_sync=True) as agent, asyncio.timeout(60):
        return (await agent.once(ask)).upload_id


async def until(ledger, wanted):
    """Wait for an event of the history that `wanted` accepts, and return it."""
    changed, after = asyncio.Event(), 0
    ledger.on_history(changed.set)
    async with asyncio.timeout(60):
        while True:
            changed.clear()
            for entry in await ledger.history(after=after):
                after = entry.position
                if wanted(entry.event):
                    return entry.event
            await changed.wait()


async def test_a_missing_object_of_the_newest_upload_is_reported_and_uploaded_again(home, tmp_path):
    identity = home.prepare()
    upload = await synced(home, identity)
    folder = tmp_path / "bucket" / "systems" / "laptop" / "uploads" / upload
    (folder / "reflection.duckdb").unlink()
    async with await agent_bootstrap.build(home, identity) as agent:
        running = asyncio.create_task(agent.run())
        event = await until(agent.ledger, lambda event: isinstance(event, UploadVerified))
        assert (event.upload_id, event.whole) == (upload, False)
        assert dict(event.problems) == {"reflection.duckdb": "is missing"}
        repaired = await until(
            agent.ledger, lambda event: isinstance(event, SyncSucceeded) and event.upload_id != upload
        )
        again = await until(agent.ledger, lambda event: isinstance(event, UploadVerified) and event.whole)
        assert again.upload_id == repaired.upload_id
        running.cancel()
        await asyncio.wait({running})
    status = await gather_status(home.settings)
    assert (status.verified.upload_id, status.verified.whole) == (repaired.upload_id, True)
    assert status.to_dict()["verified"]["problems"] == {}


async def test_a_deleted_bucket_and_an_empty_one_are_the_verdict_although_nothing_has_changed(home, moto, aws):
    bucket = moto.new_bucket()
    settings = home.settings.model_copy(update={"cloud_endpoint": moto.endpoint, "cloud_bucket": bucket})
    home = Home.of(settings)
    identity = home.prepare()
    await synced(home, identity)
    async with await agent_bootstrap.build(home, identity) as agent:
        check = agent.verify_loop.target_check
        assert await check.newest_exists()
        assert "no agent is running" in (await gather_status(settings)).verdict.text
        store = object_store(settings)
        await store.delete([item.key async for item in store.list("")])
        await store.aclose()
        moto.delete_bucket(bucket)
        assert await check.newest_exists(), "unknown"
        verdict = (await gather_status(settings)).verdict.text
        assert verdict.startswith(
            f"Uploads fail: the last check of the target failed: bucket {bucket} does not exist at"
        )
        moto.create_bucket(bucket)
        await check.newest_exists()
        assert "was the bucket emptied or replaced?" in (await gather_status(settings)).verdict.text


async def test_the_agents_verification_can_be_switched_off(home):
    settings = home.settings.model_copy(update={"agent_verify_hours": 0.0})
    home = Home.of(settings)
    async with await agent_bootstrap.build(home, home.prepare()) as agent:
        assert agent.verify_loop is None


async def test_archive_events_are_recorded_in_the_ledger_or_left_for_its_holder(home):
    identity = home.prepare()
    first, second = (
        UploadVerified(
            id=f"event-{number}",
            time=home.clock.now(),
            system_id="laptop",
            upload_id=f"2026030{number}_120000_laptop",
            whole=True,
            deep=False,
            objects=3,
            problems={},
        )
        for number in (1, 2)
    )
    await record_events(home, identity, first)
    with home.lock("run"):
        await record_events(Home.of(home.settings), identity, second)
    ledger = await home.open_ledger()
    assert [event.id for event in await ledger.outbox()] == ["event-1"]
    await ledger.aclose()
    spool = home_bootstrap.SpoolDirectory(home.state.spool, home.codec)
    assert [event for _, event in await spool.waiting()] == [second]


async def test_the_mcp_tool_lists_restore_points_with_their_problems(home, tmp_path):
    upload = await synced(home, home.prepare())
    loading = lambda: Loaded(home.settings, {}, ())  # noqa: E731
    document = await call_tool(RESTORE_POINTS, {}, loading)
    assert (document["success"], document["total"]) == (True, 1)
    (point,) = document["restore_points"]
    assert (point["upload_id"], point["problems"]) == (upload, {})
    (tmp_path / "bucket" / "systems" / "laptop" / "uploads" / upload / "manifest.json").write_text("{}")
    (point,) = (await call_tool(RESTORE_POINTS, {}, loading))["restore_points"]
    assert list(point["problems"]) == ["manifest.json"]
    (tmp_path / "bucket").rename(tmp_path / "disk")
    (tmp_path / "bucket").mkdir()
    unmounted = await call_tool(RESTORE_POINTS, {}, loading)
    assert (unmounted["success"], "is the disk mounted?" in unmounted["error"]) == (False, True)
    settings = home.settings.model_copy(update={"cloud_endpoint": ""})
    nowhere = await call_tool(RESTORE_POINTS, {}, lambda: Loaded(settings, {}, ()))
    assert (nowhere["success"], nowhere["restore_points"]) == (False, [])
    assert nowhere["hint"]
