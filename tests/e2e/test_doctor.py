"""`akosha-agent doctor` and its JSON output."""

import pytest

from tests.support.machine import Machine

SECRETS = ("canary-http-token", "AKIACANARYCANARYCANA", "canary+aws/secret")


@pytest.fixture
def machine(tmp_path):
    """A machine whose secrets are canaries, which no command may print."""
    machine = Machine(tmp_path, http_token=SECRETS[0], enable_fallback=False, sync_enabled="false")
    machine.environ |= {"AWS_ACCESS_KEY_ID": SECRETS[1], "AWS_SECRET_ACCESS_KEY": SECRETS[2]}
    machine.secrets = SECRETS
    return machine


@pytest.mark.long
def test_doctor_checks_everything_while_an_agent_runs_and_changes_nothing(machine):
    machine.write(commits=1)
    with machine.run() as agent:
        before = {path: path.stat().st_mtime_ns for path in machine.data.iterdir()}
        done = machine.call("doctor", "--json")
        assert {path: path.stat().st_mtime_ns for path in machine.data.iterdir()} == before
    assert done.err == ""
    found = {check["name"]: check for check in done.json["checks"]}
    expected_ok = {"settings", "data directory", "state directory", "free space", "ledger", "directory", "leftovers"}
    expected_ok |= {"versions", "database reflection", "agent", "Session-Buddy's own sync"}
    assert {name: found[name] for name in expected_ok if found[name]["level"] != "ok"} == {}
    assert f"process {agent.pid} (run)" in found["agent"]["found"]
    assert {name for name, check in found.items() if check["level"] == "skipped"} >= {"credentials", "Akosha", "NATS"}
    assert found["session-end hook"]["cure"] == f"akosha-agent hook install --state-dir {machine.state}"
    assert all(check["cure"] for check in found.values() if check["level"] in ("warning", "error"))
    assert (done.code, done.json["healthy"]) == (1, False)  # neither the hook nor the service is installed here
    assert not list(machine.bucket.rglob(".probe*"))
