"""A real agent with a NATS server that loses its stream, has no JetStream, or is not available."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from agent.application.triggers.session_ends import BURST, NAMED
from agent.domain.naming import STREAM_SUBJECTS
from tests.e2e.test_hook import end_session
from tests.e2e.test_nats import ENDED, publish, results_of, session_end
from tests.faults.test_nats_rounds import machine_on, upload_ids
from tests.support.bus_listener import listening
from tests.support.machine import Machine, Running
from tests.support.servers.link import ending
from tests.support.servers.nats import NatsServer, connected, running_nats
from tests.support.servers.threaded_proxy import running_link
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path):
    with running_nats(tmp_path / "nats") as server:
        yield server


def upload(machine: Machine, agent: Running, number: int) -> None:
    machine.write(commits=number + 3)
    agent.logged("sync_succeeded", number)


@pytest.mark.parametrize("agent_runs", [True, False])
def test_results_are_published_again_to_a_wiped_stream(server, tmp_path, agent_runs):
    """Even if it was wiped while no agent ran. Nothing is published again to a stream that was not wiped."""
    machine = machine_on(server, tmp_path)

    def wait_for_results(agent: Running) -> None:
        agent.logged("results_republished")
        with listening(server.url) as listener:
            listener.wait(lambda: sorted(set(listener.ids())) == sorted(upload_ids(machine)))

    with machine.run() as agent:
        for number in (1, 2):
            upload(machine, agent, number)
        with listening(server.url) as listener:
            listener.wait(lambda: len(listener.ids()) == 2)
        if agent_runs:
            server.restart(wipe=True)
            wait_for_results(agent)
    if not agent_runs:
        server.restart(wipe=True)
        with machine.run() as agent:
            wait_for_results(agent)
    server.restart()
    with machine.run() as agent:
        upload(machine, agent, 1)
        assert not [line for line in agent.log.seen if line["event"] == "results_republished"]


def test_earlier_results_are_published_once_nats_is_configured(server, tmp_path):
    machine = machine_on(server, tmp_path, agent_bus="memory")
    with machine.run() as agent:
        upload(machine, agent, 1)
    machine.set(agent_bus=None)
    with machine.run(), listening(server.url) as listener:
        listener.wait(lambda: listener.ids() == upload_ids(machine))


def test_the_next_agent_publishes_the_result_of_a_sync_without_nats(server, tmp_path):
    machine = machine_on(server, tmp_path)
    machine.write(commits=3)
    server.kill()
    done = machine.call("sync", "--json", "-v")
    assert (done.code, done.json["outcome"]) == (0, "succeeded")
    assert "outbox_blocked" in done.err
    server.start()
    with machine.run(), listening(server.url) as listener:
        listener.wait(lambda: listener.ids() == upload_ids(machine))


def test_a_single_sync_publishes_its_result_on_nats(server, tmp_path):
    machine = machine_on(server, tmp_path)
    machine.write(commits=3)
    assert machine.sync()["outcome"] == "succeeded"
    with listening(server.url) as listener:
        listener.wait(lambda: listener.ids() == upload_ids(machine))


def test_an_agent_with_bus_nats_waits_for_nats(server, tmp_path):
    machine = machine_on(server, tmp_path, agent_bus="nats")
    machine.write(commits=3)
    server.kill()
    with machine.run() as agent:
        agent.logged("bus_unavailable")
        assert machine.status()["notes"]["bus"].startswith("waiting: NATS at")
        server.start()
        agent.logged("sync_succeeded")
        with listening(server.url) as listener:
            listener.wait(lambda: listener.ids() == upload_ids(machine))


def test_session_ends_published_while_the_connection_is_down_are_answered_by_one_sync(server, tmp_path):
    """The agent reads the newest one when it is back, and makes no consumer for that."""
    with running_link(server.port) as link:
        machine = machine_on(server, tmp_path, agent_upload_on_change=False)
        machine.set(agent_nats_url=f"nats://127.0.0.1:{link.port}")
        machine.write(commits=3)
        with machine.run() as agent, listening(server.url) as listener:
            agent.logged("sync_succeeded")
            link.fail(answers=ending(0, ConnectionResetError))
            agent.logged("bus_in_use", bus="memory")
            machine.write(commits=5)
            publish(server, *((ENDED, session_end(number)) for number in (*range(1, 301), 300)))
            link.fail()
            (answer,) = results_of(listener, 300)
            assert answer["data"]["caused_by"] == ["session-300"]
            listener.wait(lambda: sorted(set(listener.ids())) == sorted(upload_ids(machine)))
            assert len(machine.manifests) == 2
            assert consumers(server) == ["listener"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_session_end_of_the_hook_over_a_dead_connection_has_a_result(server, tmp_path, killed):
    """The agent has published it into a connection that nobody reads, and has removed the note."""
    machine = machine_on(server, tmp_path, agent_upload_on_change=False)
    machine.write(commits=3)

    def wait_for_result() -> None:
        server.kill()
        server.start()
        with listening(server.url) as listener:
            listener.wait(lambda: [event for event in listener.received if event["data"]["caused_by"]])

    with machine.started("run") as agent:
        agent.logged("sync_succeeded")
        agent.logged("bus_in_use", bus="nats")
        machine.write(commits=5)
        server.pause()
        end_session(machine, "1")
        agent.logged("session_ended", session_id="1")
        wait_until(lambda: not list((machine.state / "spool").glob("*.json")))
        if not killed:
            wait_for_result()
    if killed:
        with machine.run():
            wait_for_result()


def test_a_flood_of_forged_session_ends_causes_one_upload_and_few_rows(server, tmp_path):
    machine = machine_on(server, tmp_path, agent_upload_on_change=False)
    machine.write(commits=3)
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        machine.write(commits=5)
        publish_plain(server, ENDED, [session_end(number) for number in range(10_000)])
        agent.logged("sync_succeeded", 2)
        agent.logged("session_ends_not_named")
        assert machine.status(lambda found: not found["pending"])["warnings"] == []
    assert len(machine.manifests) == 2
    with closing(sqlite3.connect(machine.state / "ledger.sqlite")) as ledger:
        (rows,) = ledger.execute("SELECT COUNT(*) FROM handled").fetchone()
        (results,) = ledger.execute("SELECT COUNT(*) FROM events WHERE result_of IS NOT NULL").fetchone()
    assert (1 <= rows <= NAMED, 2 <= results <= 1 + BURST) == (True, True), (rows, results)


def test_without_jetstream_session_ends_are_heard_and_results_wait(server, tmp_path):
    server.jetstream = False
    server.restart()
    machine = machine_on(server, tmp_path, agent_upload_on_change=False)
    machine.write(commits=3)
    with machine.run() as agent:
        agent.logged("bus_in_use", bus="nats")
        agent.logged("sync_succeeded")
        machine.write(commits=5)
        publish_plain(server, ENDED, [session_end(1)])
        agent.logged("sync_succeeded", 2)
        status = machine.status(lambda found: found["results_waiting"] == 2 and found["warnings"])
        (warning,) = status["warnings"]
        assert warning["code"] == "stream_unavailable"
        assert "check that JetStream is enabled" in warning["message"]
        assert server.monitor("/varz")["in_msgs"] < 200  # a waiting result is not published again without a pause
        server.jetstream = True
        server.restart()
        with listening(server.url) as listener:
            listener.wait(lambda: listener.ids() == upload_ids(machine))
        assert machine.status(lambda found: not found["results_waiting"])["warnings"] == []


def test_the_consumers_of_an_earlier_version_are_removed(server, tmp_path):
    machine = machine_on(server, tmp_path, agent_bus="memory")
    with machine.run() as agent:
        upload(machine, agent, 1)
    (manifest,) = machine.manifests
    ours = [f"laptop-{manifest['agent_id'][:8]}-{role}" for role in ("cloud", "http", "session")]

    async def make_consumers() -> None:
        async with connected(server.url) as client:
            await client.jetstream().add_stream(name="AKOSHA_SYNC", subjects=list(STREAM_SUBJECTS))
            for name in (*ours, "of-another"):
                await client.jetstream().add_consumer("AKOSHA_SYNC", durable_name=name)

    asyncio.run(make_consumers())
    machine.set(agent_bus=None)
    with machine.run():
        wait_until(lambda: consumers(server) == ["of-another"])


def publish_plain(server: NatsServer, subject: str, messages: list[bytes]) -> None:
    """Publish without waiting for confirmations."""

    async def send() -> None:
        async with connected(server.url) as client:
            for data in messages:
                await client.publish(subject, data)
            await client.flush()

    asyncio.run(send())


def consumers(server: NatsServer) -> list[str]:
    async def names() -> list[str]:
        async with connected(server.url) as client:
            return [found.name for found in await client.jetstream().consumers_info("AKOSHA_SYNC")]

    return asyncio.run(names())
