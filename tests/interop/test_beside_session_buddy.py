"""The newest Session-Buddy and this agent in one environment: `make interop` lets pip resolve both at once."""

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
    """In place of the interpreter that has Akosha: the one that has Session-Buddy and the agent."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} does not name a Python that has Session-Buddy: `make interop` does")
    return python


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_both_are_there_in_their_newest_versions_and_session_buddy_syncs_what_it_holds_open(
    akosha_python, machine, tmp_path
):
    machine.set(agent_data_dir=machine.data, agent_state_dir=machine.state)
    command = [akosha_python, MAIN, machine.data, machine.bucket.as_uri()]
    done = subprocess.run(
        command, env=machine.environ, cwd=machine.home, capture_output=True, text=True, timeout=4 * TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    assert tuple(map(int, reported["versions"]["session-buddy"].split("."))) >= NEWEST
    assert reported["versions"]["mcp"].startswith("1.")
    assert [result["success"] for result in reported["results"]] == [True, True], reported["results"]
    assert reported["locked"], "copying its files drops the lock of a process that has them open"
    assert "lock" in reported["why"].lower()
    assert [manifest["upload_id"] for manifest in machine.manifests] == [
        one["upload_id"] for one in reported["results"]
    ]
    arrived = upload_contents.rows(upload_contents.unpack(machine.manifests[-1], machine.object, tmp_path / "arrived"))
    assert arrived["reflection"]["conversations_v2"] == 2


def test_the_mcp_server_answers_there(akosha_python, machine):
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    places = ["--data-dir", str(machine.data), "--state-dir", str(machine.state)]
    process = subprocess.Popen(
        [akosha_python, "-m", "agent", "mcp", *places],
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
