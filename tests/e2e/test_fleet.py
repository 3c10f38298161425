"""`fleet` as a command: what agents on one bucket and one NATS server have done."""

import signal

import pytest

from tests.support.machine import Machine
from tests.support.servers.nats import running_nats


@pytest.fixture
def server(tmp_path):
    with running_nats(tmp_path / "nats") as server:
        yield server


def test_fleet_shows_the_systems_and_exits_with_1_if_one_is_not_fine(tmp_path, server):
    laptop = Machine(tmp_path / "laptop", agent_nats_url=server.url)
    laptop.write(commits=2, entities=2)
    viewer = Machine(tmp_path / "viewer", agent_nats_url=server.url, cloud_endpoint=laptop.bucket.as_uri())
    fleet = ("fleet", "--state-dir", str(viewer.state))
    with viewer.started(*fleet, "--watch", directories=False) as watching:
        assert laptop.sync()["outcome"] == "succeeded"
        watching.printed.wait(lambda line: "laptop  fine" in line.get("text", ""))
        assert watching.stop(signal.SIGINT) == 128 + signal.SIGINT
    done = viewer.call(*fleet, "--json", directories=False)
    assert (done.code, done.err) == (0, "")
    (system,) = done.json["systems"]
    assert done.json["fine"]
    assert (system["system_id"], system["condition"], system["sources"]) == ("laptop", "fine", ["bucket", "nats"])
    assert system["newest_upload"] == laptop.manifests[-1]["upload_id"]
    server.kill()
    done = viewer.call(*fleet, directories=False)
    assert done.code == 1
    assert "1 system: all fine; not read: nats" in done.out
    assert "laptop  fine" in done.out
    assert not viewer.state.exists()


def test_fleet_without_a_source_names_the_settings_and_refuses_json_with_watch(tmp_path):
    machine = Machine(tmp_path, cloud_endpoint=None)
    done = machine.call("fleet", directories=False)
    assert (done.code, done.out) == (2, "")
    assert "akosha_agent_nats_url" in done.err
    assert machine.call("fleet", "--watch", "--json", directories=False).code == 2
