"""A data directory that does not exist or has no databases: each command reports it and names the setting."""

import pytest

from agent.api import AkoshaSyncConfig, HTTPSyncError, HttpSyncMethod
from agent.settings import variable
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha

SETTING = "akosha_agent_data_dir"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, enable_fallback="false")


def test_a_missing_data_directory_fails_sync_and_run_waits_for_it(machine):
    machine.data.rmdir()
    command = machine.call("sync")
    assert command.code == 1
    assert f"the data directory {machine.data} does not exist" in command.err
    assert SETTING in command.err
    result = machine.sync(code=1)
    assert (result["success"], SETTING in result["hint"]) == (False, True)
    status = machine.call("status").out
    assert f"pending    the data directory {machine.data} does not exist" in status
    with machine.run() as agent:
        (line,) = agent.logged("data_directory_unreadable")
        assert f"{machine.data} does not exist" in line["error"]
        assert "does not exist" in machine.status()["problem"]
        assert "does not exist" in machine.sync(code=1)["error"]
        machine.data.mkdir()
        machine.write(commits=2, entities=1)
        agent.logged("sync_succeeded", method="cloud")
        assert len([line for line in agent.log.seen if line["event"] == "data_directory_unreadable"]) == 1
    assert machine.status()["problem"] == ""


def test_a_data_directory_that_does_not_exist_is_the_error_whatever_else_is_wrong(machine):
    """The default system ID of another data directory belongs to the first one, which is not the cause."""
    machine.set(system_id=None)
    machine.write(commits=1)
    assert machine.call("sync").code == 0
    machine.data = machine.data.with_name("daat")
    command = machine.call("sync")
    assert (command.code, f"the data directory {machine.data} does not exist" in command.err) == (1, True), command.err
    assert "take-over" not in command.err


async def test_a_missing_data_directory_raises_an_error_from_the_api(machine, monkeypatch):
    machine.data.rmdir()
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(variable("cloud_endpoint"))
    with Akosha() as akosha:
        monkeypatch.setenv(variable("http_endpoint"), akosha.url)
        method = HttpSyncMethod(AkoshaSyncConfig(), data_dir=machine.data, state_dir=machine.state)
        with pytest.raises(HTTPSyncError, match="does not exist") as raised:
            await method.sync()
    assert SETTING in raised.value.hint


def test_an_empty_data_directory_is_reported(machine):
    command = machine.call("sync")
    assert command.code == 0
    assert "there are no databases in the data directory yet" in command.out
    assert SETTING in command.out
    assert "pending    there are no databases in the data directory yet" in machine.call("status").out
    with machine.run():
        assert SETTING in machine.status()["problem"]
        assert SETTING in machine.sync()["why"]


def test_the_data_directory_comes_from_session_buddys_settings(machine):
    machine.write(commits=2, entities=1)
    settings = machine.home / ".claude" / "settings" / "session-buddy.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"data_dir: {machine.data}\n")
    done = machine.call("sync", "--json", "--state-dir", str(machine.state), directories=False)
    assert (done.code, done.json["method"]) == (0, "cloud"), done.err
    row = machine.call("config", "--json", directories=False).json["settings"]["akosha_agent_data_dir"]
    assert (row["value"], row["origin"]) == (str(machine.data), "data_dir in ~/.claude/settings/session-buddy.yaml")
