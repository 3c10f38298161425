"""Machines that share a system ID, and disks that are not mounted: what the commands report."""

import re
from pathlib import Path

import pytest

from tests.support.machine import Machine


@pytest.fixture
def machines(tmp_path):
    """Two machines with one bucket, distinguished by their data directories."""
    made = [Machine(tmp_path / name, cloud_endpoint=(tmp_path / "bucket").as_uri()) for name in ("one", "two")]
    for machine in made:
        machine.bucket = tmp_path / "bucket"
        machine.set(enable_fallback=False)
        machine.write(commits=1)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(machine: Machine, name: str) -> dict:
    checks = machine.call("doctor", "--json").json["checks"]
    return next(check for check in checks if check["name"] == name)


def test_every_command_reports_an_unmounted_disk_and_writes_nothing(machines, tmp_path):
    machine, _ = machines
    machine.sync()
    machine.bucket.rename(tmp_path / "disk")
    machine.bucket.mkdir()
    machine.write(commits=2)
    assert "is the disk mounted?" in machine.sync(code=1)["error"]
    commands = (["verify"], ["prune"], ["uploads"], ["uploads", "show", "2"], ["restore", "--to", str(tmp_path / "to")])
    for command in commands:
        done = machine.call(*command)
        assert done.code == 1
        assert "is the disk mounted?" in done.err
    (warning,) = machine.status()["warnings"]
    assert warning["code"] == "target_not_mounted"
    assert "is the disk mounted?" in machine.call("status").out
    check = found(machine, "directory")
    assert (check["level"], "is the disk mounted?" in check["found"]) == ("error", True)
    with machine.run():
        assert [warning["code"] for warning in machine.status()["warnings"]] == ["target_not_mounted"]
    assert [*machine.bucket.iterdir()] == []
    machine.bucket.rmdir()
    (tmp_path / "disk").rename(machine.bucket)
    assert machine.status()["warnings"] == []
    assert machine.sync()["success"]
    assert machine.call("verify").code == 0
    assert found(machine, "directory")["level"] == "ok"


def test_verify_works_with_a_damaged_ledger(machines):
    machine, _ = machines
    machine.sync()
    for path in machine.state.glob("ledger.sqlite*"):
        path.unlink()
    (machine.state / "ledger.sqlite").write_bytes(b"no ledger" * 5000)
    assert machine.call("verify").code == 0
    assert [warning["code"] for warning in machine.status()["warnings"]] == ["ledger_replaced"]
    assert machine.sync()["success"]


def test_a_running_agent_takes_over_a_system_id(machines):
    one, two = machines
    one.sync()
    before = files(one.bucket)
    with two.run() as agent:
        agent.logged("sync_failed")
        (warning,) = two.status(until=lambda status: status["warnings"])["warnings"]
        assert warning["code"] == "target_not_ours"
        assert "belongs to" in warning["message"]
        assert found(two, "directory")["level"] == "error"
        assert two.call("prune").code == 1
        assert files(one.bucket) == before
        taken = two.call("sync", "--take-over")
        assert (taken.code, "the uploads of laptop there belong to this machine now\n" in taken.out) == (0, True)
        assert two.status(until=lambda status: not status["warnings"])["system_id"] == "laptop"
    before = files(one.bucket)
    one.write(commits=2)
    assert "taken over by" in one.sync(code=1)["error"]
    assert [warning["code"] for warning in one.status()["warnings"]] == ["target_not_ours"]
    assert "taken over by" in found(one, "warnings")["found"]
    assert files(one.bucket) == before


def test_a_running_agent_adds_a_suffix_before_its_first_upload(machines):
    one, two = machines
    for machine in machines:
        machine.set(system_id=None)
    assert one.status()["system_id_undecided"]
    assert re.search(r"may become \S+-[0-9a-f]+ if another machine already uses this name", one.call("status").out)
    name = one.sync()["upload_id"].split("_", 2)[2]
    assert not one.status()["system_id_undecided"]
    before = files(one.bucket)
    with two.run() as agent:
        (suffixed,) = agent.logged("system_id_suffixed")
        agent.logged("sync_succeeded", system_id=suffixed["system_id"])
        status = two.status()
    assert suffixed["system_id"].startswith(f"{name}-")
    assert (status["system_id"], status["system_id_undecided"], status["warnings"]) == (
        suffixed["system_id"],
        False,
        [],
    )
    assert before.items() <= files(one.bucket).items()
    two.write(commits=2)
    assert two.sync()["upload_id"].endswith(suffixed["system_id"])


def test_a_sync_with_another_state_directory_does_not_take_the_uploads_from_the_running_agent(machines, tmp_path):
    machine, _ = machines
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        refused = machine.call(
            "sync", "--state-dir", str(tmp_path / "x"), "--data-dir", str(machine.data), directories=False
        )
        assert refused.code == 1
        assert f"another state directory on this machine: {machine.state}" in refused.err
        machine.write(commits=2)
        agent.logged("sync_succeeded", count=2)
    assert machine.status()["warnings"] == []
