"""Commands while an agent runs: over its control socket, while it is suspended, after it is killed."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from agent.bootstrap.home import Home
from agent.domain.errors import SettingsError
from agent.domain.events import Event, SyncProgress
from agent.entrypoints.control_client import follow_history
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.sync_client import SyncClient
from agent.settings import load
from tests.support.machine import TIMEOUT, Machine
from tests.support.waiting import until


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, agent_upload_on_change="false", max_retries=0)


def home_of(machine: Machine) -> Home:
    """Return the directories of a command that is run in this process with the machine's settings."""
    directories = {"agent_data_dir": str(machine.data), "agent_state_dir": str(machine.state)}
    loaded = load(
        command_line=directories, settings_file=None, environ=machine.environ, cwd=machine.home, home=machine.home
    )  # fmt: skip
    return Home.of(loaded.settings)


@asynccontextmanager
async def following(home: Home) -> AsyncIterator[list[Event]]:
    """Collect the events of the ledger in a list, as `events --follow` does."""
    events: list[Event] = []

    async def read() -> None:
        ledger = await home.read_ledger()
        try:
            async with aclosing(follow_history(home, ledger, after=0)) as entries:
                async for entry in entries:
                    events.append(entry.event)  # noqa: PERF401 - the iteration does not end
        finally:
            await ledger.aclose()

    reading = asyncio.create_task(read(), name="read")
    try:
        yield events
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


async def test_commands_use_the_agents_socket_and_wait_while_it_is_suspended(machine):
    home = home_of(machine)
    progress: list[SyncProgress] = []
    machine.write(commits=19)
    with machine.run() as agent:
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        machine.write(commits=20)
        async with following(home) as events:
            asked = await SyncClient.prepare(home.settings)
            result = await asked.result(on_progress=progress.append)
            agent.logged("sync_succeeded", request_id=asked.ask.id)
            assert {event.request_id for event in progress} >= {asked.ask.id}
            await until(lambda: result in events)

            status = await gather_status(home.settings)
            assert (status.running["pid"], status.pending, status.bus.text) == (agent.pid, (), "in this process")

            other = home.settings.model_copy(update={"system_id": "desktop"})
            refused = await (await SyncClient.prepare(other)).result()
            assert "the event is for the system desktop" in refused.error

            elsewhere = await SyncClient.prepare(home.settings, data_dir=machine.home / "elsewhere")
            with pytest.raises(SettingsError, match=f"the running agent syncs {machine.data}, not .*elsewhere"):
                await elsewhere.result()

            agent.process.send_signal(signal.SIGSTOP)
            machine.write(commits=21)
            suspended = await gather_status(home.settings)
            assert f"process {agent.pid} (run)" in suspended.unresponsive_agent
            assert suspended.pending == ("reflection",)
            asked = await SyncClient.prepare(home.settings)
            waiting = asyncio.create_task(asked.result(), name="sync")
            await until(lambda: list((machine.state / "spool").glob("[!.]*.json")))
            agent.process.send_signal(signal.SIGCONT)
            result = await waiting
            assert (result.request_id, result.type) == (asked.ask.id, "akosha.sync.succeeded.v1")
            await until(lambda: result in events)

            assert agent.stop() == 0
            result = await (await SyncClient.prepare(home.settings)).result()
            await until(lambda: result in events)
            assert len({event.id for event in events}) == len(events)
    assert len(machine.manifests) == 3
    assert list((machine.state / "spool").iterdir()) == []
    assert not (machine.state / "control.sock").exists()


async def test_the_caller_does_a_sync_that_a_killed_agent_had_accepted(machine):
    home = home_of(machine)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.environ |= {"AWS_ACCESS_KEY_ID": "scratch", "AWS_SECRET_ACCESS_KEY": "scratch"}
        machine.set(cloud_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", cloud_bucket="memories")
        with machine.started("run") as agent:
            agent.logged("agent_started")
            machine.write(commits=20)
            asked = await SyncClient.prepare(home.settings)
            syncing = asyncio.create_task(asked.result(), name="sync")
            await until(lambda: any(line.get("request_id") == asked.ask.id for line in list(agent.log.seen)))
            agent.process.kill()
            # The agent's bucket does not answer; that of this process is a directory.
            async with asyncio.timeout(TIMEOUT):
                result = await syncing
    assert (result.request_id, result.success) == (asked.ask.id, True)
    assert len(machine.manifests) == 1
    assert list((machine.state / "spool").iterdir()) == []
