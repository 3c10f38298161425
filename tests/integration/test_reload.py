"""SIGHUP: the agent is built again with other settings in the same process. Nothing is lost, repeated or leaked."""

import asyncio
import os
import signal
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.directory_store import DirectoryStore
from agent.application.monitoring.status import WEBHOOKS
from agent.bootstrap import agent as agent_bootstrap
from agent.domain.errors import StateError
from agent.domain.events import SyncAsked
from agent.entrypoints import logs
from agent.entrypoints.cli import run
from agent.settings import Loaded, Settings
from tests.support import values
from tests.support.machine import NO_AKOSHA
from tests.support.notify import notified
from tests.support.servers.webhook import Receiver
from tests.support.session_buddy import GRAPH, create
from tests.support.waiting import until

SYNCED = "nothing pending; last upload 2"


class World:
    """An agent in this process, its settings, and the notifications to its supervisor."""

    def __init__(self, tmp_path: Path, notify) -> None:
        self.tmp_path, self.notify = tmp_path, notify
        self.agents = []
        self.seen = 0
        self.settings = Settings(
            system_id="laptop",
            http_endpoint=NO_AKOSHA,
            cloud_endpoint=self.bucket("first"),
            agent_data_dir=tmp_path / "data",
            agent_state_dir=tmp_path / "state",
            agent_quiet_seconds=0.1,
        )

    def bucket(self, name: str) -> str:
        return (self.tmp_path / name).as_uri()

    def uploads(self, name: str) -> list[Path]:
        return sorted(self.tmp_path.glob(f"{name}/systems/laptop/uploads/*"))

    def load(self) -> Loaded:
        return Loaded(self.settings, {}, ())

    async def wait_for_notification(self, key: str, text: str = "1") -> None:
        """Wait for the next datagram whose `key` starts with this text."""

        def wait() -> None:
            reported = self.notify.wait(lambda reported: reported.get(key, "").startswith(text), since=self.seen)
            self.seen = self.notify.received.index(reported, self.seen) + 1

        await asyncio.to_thread(wait)

    async def reload(self, **changes: object) -> None:
        """Change settings, send SIGHUP, and return when the agent has notified that it is ready again."""
        self.settings = Settings(**{**self.settings.model_dump(), **changes})
        os.kill(os.getpid(), signal.SIGHUP)
        await self.wait_for_notification("RELOADING")
        await self.wait_for_notification("READY")


@pytest.fixture
async def world(tmp_path, monkeypatch):
    create(tmp_path / "data", commits=2, entities=0)
    (tmp_path / "data" / GRAPH).unlink()  # one database is enough
    with notified() as notify:
        monkeypatch.setenv("NOTIFY_SOCKET", notify.address)
        monkeypatch.setattr(logs, "configure", lambda *_, **_how: None)
        world = World(tmp_path, notify)
        build = agent_bootstrap.build

        async def built(*args, **how):
            world.agents.append(await build(*args, **how))
            return world.agents[-1]

        monkeypatch.setattr(agent_bootstrap, "build", built)
        yield world


@asynccontextmanager
async def running(world: World):
    task = asyncio.create_task(run.run_until_stopped(world.settings, world.load))
    try:
        await world.wait_for_notification("READY")
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


async def test_a_reload_changes_the_bucket(world):
    async with running(world):
        await world.wait_for_notification("STATUS", SYNCED)
        await world.reload(cloud_endpoint=world.bucket("second"))
        await world.wait_for_notification("STATUS", SYNCED)
    assert (len(world.uploads("first")), len(world.uploads("second"))) == (1, 1)


async def test_a_reload_adds_a_webhook_which_gets_the_results_from_then_on_and_removes_it(world):
    async with Receiver() as receiver, running(world):
        await world.wait_for_notification("STATUS", SYNCED)
        await world.reload(agent_webhooks=[{"url": receiver.url, "events": ["succeeded"]}])
        await world.reload(cloud_endpoint=world.bucket("second"))
        await receiver.until(1)
        await world.reload(agent_webhooks=())
        async with asyncio.timeout(60):
            while (await world.agents[-1].ledger.notes()).get(WEBHOOKS):
                await asyncio.sleep(0.01)
    assert [one.event["data"]["location"] for one in receiver.received] == [world.bucket("second")]


async def test_a_sync_during_a_reload_is_done_once_and_its_requester_gets_the_result(world, monkeypatch):
    put, started, held = DirectoryStore.put, asyncio.Event(), asyncio.Event()

    async def gated(self, *args, **how):
        if not started.is_set():
            started.set()
            await held.wait()
        return await put(self, *args, **how)

    monkeypatch.setattr(DirectoryStore, "put", gated)
    ask = SyncAsked(id="ask-1", time=values.NOON, system_id="laptop")
    async with running(world):
        await started.wait()
        assert await world.agents[0].agent_service.accept(ask)
        await world.reload(agent_quiet_seconds=0.2)
        await world.wait_for_notification("STATUS", SYNCED)
        ledger = world.agents[1].ledger
        async with asyncio.timeout(60):
            while (result := await ledger.outcome("ask-1")) is None:
                await world.agents[1].sync_finished.wait(1)
        assert result.success
        requests = [e.event for e in await ledger.history() if e.event.type == "akosha.sync.succeeded.v1"]
    assert len(requests) == 1
    (upload,) = world.uploads("first")
    assert (upload / "manifest.json").exists()
    assert list((world.tmp_path / "state" / "staging").iterdir()) == []


async def test_the_old_settings_stay_in_use_if_no_agent_can_be_built_with_the_new_ones(world, monkeypatch):
    build, holders = agent_bootstrap.build, []

    async def failing(home, *args, **how):
        holders.append(home.holder().pid)
        if home.settings.agent_quiet_seconds == 9:
            raise StateError("the credentials file cannot be read", hint="chmod 600 it")
        return await build(home, *args, **how)

    monkeypatch.setattr(agent_bootstrap, "build", failing)
    with capture_logs() as reported:
        async with running(world):
            await world.reload(agent_quiet_seconds=9)
            assert world.agents[-1].file_changes.rules.quiet == 0.1
            await world.reload(agent_quiet_seconds=0.3)
            assert world.agents[-1].file_changes.rules.quiet == 0.3
    (refused,) = [line for line in reported if line["event"] == "settings_refused"]
    assert (refused["reason"], refused["hint"]) == ("the credentials file cannot be read", "chmod 600 it")
    assert holders == [os.getpid()] * 4, "the lock of the state directory is held throughout"


async def test_a_changed_state_directory_is_refused_with_the_restart_command(world):
    with capture_logs() as reported:
        async with running(world):
            await world.reload(agent_state_dir=world.tmp_path / "elsewhere", agent_quiet_seconds=5)
    (refused,) = [line for line in reported if line["event"] == "settings_refused"]
    assert "needs a restart" in refused["reason"]
    assert refused["hint"] == "akosha-agent service restart"
    assert (len(world.agents), (world.tmp_path / "elsewhere").exists()) == (1, False)


async def test_unchanged_settings_and_log_settings_do_not_rebuild_the_agent(world):
    with capture_logs() as reported:
        async with running(world):
            await world.reload()
            await world.reload(agent_log_level="DEBUG")
            await world.reload(agent_log_level="DEBUG")
    events = [line["event"] for line in reported if line["event"].startswith("settings_")]
    assert events == ["settings_unchanged", "settings_changed", "settings_unchanged"]
    assert len(world.agents) == 1


@pytest.mark.parametrize("refused", [False, True])
async def test_a_reload_always_resets_clients(world, refused):
    class Client:
        resets = 0

        async def drop_idle_connections(self) -> None: ...

        async def reset_client(self) -> None:
            self.resets += 1

    client = Client()
    async with running(world):
        world.agents[0].stall_monitor.register(client)
        await world.reload(**({"agent_state_dir": world.tmp_path / "elsewhere"} if refused else {}))
    assert (len(world.agents), client.resets) == (1, 1)


async def test_changed_keys_are_logged_without_values(world):
    with capture_logs() as reported:
        async with running(world):
            await world.reload(http_token="canary-1234", agent_quiet_seconds=0.4)
    (changed,) = [line for line in reported if line["event"] == "settings_changed"]
    assert changed["keys"] == ["akosha_agent_quiet_seconds", "akosha_http_token"]
    assert "canary" not in repr(reported)


@pytest.mark.long
async def test_twenty_reloads_leak_no_task_thread_or_descriptor(world):
    def held() -> tuple[int, int, int]:
        """Return the numbers of tasks, threads and descriptors."""
        threads = [one for one in threading.enumerate() if not one.name.startswith("asyncio_")]
        return len(asyncio.all_tasks()), len(threads), len(list(Path("/dev/fd").iterdir()))

    async with running(world):
        await world.wait_for_notification("STATUS", SYNCED)
        counts = []
        for number in range(20):
            await world.reload(agent_quiet_seconds=0.2 + number / 100)
            await world.wait_for_notification("STATUS", SYNCED)
            counts.append(held())
        # A descriptor of the last sync may be open for a moment after its notification.
        await until(lambda: all(now <= before for now, before in zip(held(), counts[1], strict=True)))
