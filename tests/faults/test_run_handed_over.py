"""Several processes with one state directory: one works; the others use it, wait, take over or refuse to start."""

import signal

import pytest

from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.s3 import aws_environment
from tests.support.servers.threaded_proxy import Gate, running_faulty_proxy

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.write(commits=3, entities=2)
    return machine


def test_a_running_agent_does_the_sync_and_refuses_a_second_agent(machine):
    machine.set(agent_upload_on_change="false")
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        machine.write(commits=5)
        result = machine.sync()
        (asked,) = agent.logged("sync_requested", reason="manual")
        assert (result["request_id"], result["triggered_by"]) == (asked["request_id"], "manual")
        assert (result["success"], result["upload_id"]) == (True, machine.manifests[-1]["upload_id"])
        again = machine.call("sync")
        assert (again.code, again.out) == (0, "nothing has changed since the last sync\n")
        assert machine.sync("--method", "http", code=1)["method"] == "http"
        second = machine.call("run")
        assert (second.code, second.out) == (1, "")
        assert f"process {agent.pid} (run)" in second.err
        assert "--state-dir" in second.err
    assert list((machine.state / "spool").glob("*.json")) == []
    assert len(machine.manifests) == 2


def test_two_concurrent_syncs_succeed_with_one_upload(machine):
    one, two = machine.start("sync", "--json"), machine.start("sync", "--json")
    results = [one.end(), two.end()]
    assert [done.code for done in results] == [0, 0], results
    assert sorted(done.json["outcome"] for done in results) == ["skipped", "succeeded"]
    assert len(machine.manifests) == 1
    assert list((machine.state / "spool").glob("*.json")) == []


def test_a_sync_that_waits_for_a_killed_agent_takes_over(machine, moto):
    bucket, gate = Bucket(moto), Gate()
    machine.environ |= aws_environment()
    with running_faulty_proxy(moto.endpoint) as proxy:
        machine.set(cloud_endpoint=proxy.url, cloud_bucket=bucket.name)
        proxy.on("put_object", gate.hold(), times=1)
        with machine.started("run") as agent:
            gate.wait()
            with machine.started("sync", "--json") as asking:
                agent.logged("sync_requested", reason="manual")
                agent.stop(signal.SIGKILL)
                gate.open()
                done = asking.end()
    assert done.code == 0, done.err
    (manifest,) = bucket.manifests
    assert (done.json["upload_id"], done.json["outcome"]) == (manifest["upload_id"], "succeeded")
    status = machine.status()
    assert (status["pending"], status["running"], machine.staged) == ([], None, [])
