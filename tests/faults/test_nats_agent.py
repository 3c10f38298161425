"""A real agent with a NATS server that loses its stream, and a store that stalls for longer than the ack wait."""

import threading

import pytest

from tests.faults.test_nats_rounds import machine_on, upload_ids
from tests.support.bus_listener import listening
from tests.support.machine import Machine, Running
from tests.support.servers.bucket import Bucket
from tests.support.servers.nats import NatsServer, running_nats
from tests.support.servers.s3 import SECRET_KEY, aws_environment
from tests.support.servers.threaded_proxy import Gate, running_faulty_proxy

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


def test_a_sync_longer_than_the_ack_wait_is_not_delivered_again(server, moto, tmp_path):
    bucket, gate = Bucket(moto), Gate()
    with running_faulty_proxy(moto.endpoint) as proxy:
        machine = machine_on(server, tmp_path, cloud_endpoint=proxy.url, cloud_bucket=bucket.name)
        machine.set(agent_bus="nats")
        machine.constants = {"agent.bootstrap.buses:PATIENCE": {"ack_wait": 0.6}}
        machine.environ |= aws_environment()
        machine.secrets = (SECRET_KEY,)
        proxy.on("put_object", gate.hold(), times=1)
        machine.write(commits=3)
        with machine.run() as agent:
            gate.wait()
            threading.Event().wait(3)  # five times the ack wait, in real time
            gate.open()
            agent.logged("sync_succeeded")
            (cloud,) = (one for one in _consumers(server) if one["name"].endswith("-cloud"))
    assert (cloud["delivered"]["consumer_seq"], cloud["num_redelivered"]) == (1, 0)
    assert len(bucket.manifests) == 1


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


def _consumers(server: NatsServer) -> list[dict]:
    (account,) = server.monitor("/jsz?consumers=true")["account_details"]
    return [consumer for stream in account["stream_detail"] for consumer in stream["consumer_detail"]]
