"""The newest Session-Buddy and the agent in one environment, which `make interop` installs with one call of pip."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import upload_contents
from tests.support.machine import TIMEOUT, Machine

VARIABLE = "SESSION_BUDDY_PYTHON"
NEWEST = (0, 23, 0)
MAIN = Path(__file__).with_name("session_buddy_main.py")


@pytest.fixture(autouse=True, scope="session")
def akosha_python():
    """The path of the interpreter with Session-Buddy and the agent, instead of the one with Akosha."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} is not set to a Python with Session-Buddy; `make interop` sets it")
    return python


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_session_buddy_syncs_the_database_that_it_has_open(akosha_python, machine, tmp_path):
    machine.set(agent_data_dir=machine.data, agent_state_dir=machine.state)
    command = [akosha_python, MAIN, machine.data, machine.bucket.as_uri()]
    process = subprocess.run(
        command, env=machine.environ, cwd=machine.home, capture_output=True, text=True, timeout=4 * TIMEOUT
    )
    assert process.returncode == 0, process.stderr
    output = json.loads(process.stdout.splitlines()[-1])
    assert tuple(map(int, output["versions"]["session-buddy"].split("."))) >= NEWEST
    assert output["versions"]["mcp"].startswith("1.")
    assert [result["success"] for result in output["results"]] == [True, True], output["results"]
    assert output["locked"], "a copy in the process of the writer drops its lock on the database"
    assert "lock" in output["error"].lower()
    assert [manifest["upload_id"] for manifest in machine.manifests] == [one["upload_id"] for one in output["results"]]
    rows = upload_contents.rows(upload_contents.unpack(machine.manifests[-1], machine.object, tmp_path / "uploaded"))
    assert rows["reflection"]["conversations_v2"] == 2


def test_the_mcp_server_answers_in_session_buddys_environment(akosha_python, machine):
    parameters = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    options = ["--data-dir", str(machine.data), "--state-dir", str(machine.state)]
    process = subprocess.Popen(
        [akosha_python, "-m", "agent", "mcp", *options],
        env=machine.environ,
        cwd=machine.home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdin.write("".join(f"{json.dumps(message)}\n" for message in messages))
        process.stdin.flush()
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.stdin.close()
    assert process.returncode == 0
    assert first["result"]["serverInfo"]["name"] == "akosha-agent"
    assert {tool["name"] for tool in second["result"]["tools"]} >= {"sync_to_akosha", "akosha_sync_status"}
