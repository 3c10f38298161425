"""The sync method in docs/methods.md works as printed."""

import asyncio
import re
import uuid
from pathlib import Path

import pytest

from agent.bootstrap import agent as agent_bootstrap, home as home_bootstrap
from agent.domain import routing
from agent.domain.delivery_state import Target
from agent.domain.events import SyncAsked, SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.identity import Identity
from agent.settings import Settings
from tests.support import session_buddy

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
IDENTITY = Identity("agent-1", "laptop")


class Rig:
    """One machine whose only method is the documented one."""

    def __init__(self, tmp_path, monkeypatch):
        names = {"__name__": "page"}
        exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
        self.folder, self.data = tmp_path / "folder", tmp_path / "data"
        target = Target("folder", str(self.folder), "", "laptop")

        def methods(settings, state, identity, taker, mirror, warm, ledger, clock, *rest, **others):
            page = names["FolderSync"](self.folder, target=target, taker=taker, ledger=ledger, clock=clock)
            return {page.name: page}

        monkeypatch.setattr(agent_bootstrap, "sync_methods", methods)
        monkeypatch.setattr(routing, "plan_route", lambda **_: ("folder",))
        session_buddy.create(self.data, commits=3, entities=2)
        self.folder.mkdir()
        self.home = home_bootstrap.Home.of(
            Settings(
                agent_data_dir=self.data, agent_state_dir=tmp_path / "state", max_retries=1, retry_backoff_seconds=0.01
            )
        )
        self.home.state.prepare()

    async def sync(self):
        ask = SyncAsked(id=str(uuid.uuid4()), time=self.home.clock.now(), system_id="laptop")
        async with await agent_bootstrap.build(self.home, IDENTITY, single_sync=True) as agent, asyncio.timeout(60):
            return await agent.once(ask)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch)


async def test_the_documented_method_delivers_changes_and_skips_unchanged_databases(rig):
    done = await rig.sync()
    assert isinstance(done, SyncSucceeded)
    assert (done.method, done.location) == ("folder", str(rig.folder))
    assert {path.name: path.read_bytes() for path in rig.folder.iterdir()} == {
        path.name: path.read_bytes() for path in rig.data.iterdir() if ".duckdb" in path.name
    }
    assert isinstance(await rig.sync(), SyncSkipped)
    (rig.data / "reflection.duckdb").write_bytes((rig.data / "knowledge_graph.duckdb").read_bytes())
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert (rig.folder / "reflection.duckdb").read_bytes() == (rig.data / "reflection.duckdb").read_bytes()


async def test_the_documented_method_fails_with_a_hint_and_recovers(rig):
    (rig.folder / "reflection.duckdb").mkdir()
    failed = await rig.sync()
    assert isinstance(failed, SyncFailed)
    assert "free disk space, or fix its permissions" in failed.error
    (rig.folder / "reflection.duckdb").rmdir()
    assert isinstance(await rig.sync(), SyncSucceeded)
