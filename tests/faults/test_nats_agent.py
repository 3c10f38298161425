"""A real agent with a NATS server that loses its stream, or is not available."""

import pytest

from tests.faults.test_nats_rounds import machine_on, upload_ids
from tests.support.bus_listener import listening
from tests.support.machine import Machine, Running
from tests.support.servers.nats import running_nats

pytestmark = pytest.mark.long

pytest_plugins = ["tests.support.servers.fixtures"]


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
