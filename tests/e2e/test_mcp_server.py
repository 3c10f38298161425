"""`akosha-agent mcp` as a subprocess, called by a real MCP client over stdio, like a coding assistant.

The server runs with the MCP SDK of this environment and with version 1, which `make setup` installs separately.
"""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from agent.adapters.state_directory import StateDirectory
from tests.support.machine import COMMAND, TIMEOUT, Machine, Running
from tests.support.waiting import wait_until

SYNC, STATUS, POINTS = "sync_to_akosha", "akosha_sync_status", "akosha_restore_points"
TOKEN = "canary-t0ken"
FIRST_SDK = Path(sys.prefix) / "mcp1"
PROMISED = {
    "method": str,
    "success": bool,
    "files_uploaded": list,
    "bytes_transferred": int,
    "duration_seconds": int | float,
    "upload_id": str | None,
    "error": str | None,
    "triggered_by": str,
}


@dataclass
class Assistant:
    """A coding assistant that has started the server and calls its tools."""

    machine: Machine
    portal: BlockingPortal
    client: Client
    progress: list[tuple[float, float | None, str]] = field(default_factory=list)

    def start(self, tool: str, **arguments: object) -> Future:
        async def call() -> dict:
            result = await self.client.call_tool(tool, arguments, progress_callback=self._note)
            [text] = result.content
            assert json.loads(text.text) == result.structured_content
            assert result.is_error is False
            return result.structured_content

        return self.portal.start_task_soon(call)

    def sync(self, **arguments: object) -> dict:
        self.progress.clear()
        result = self.start(SYNC, **arguments).result(TIMEOUT)
        for name, kind in PROMISED.items():
            assert isinstance(result[name], kind), (name, result[name])
        return result

    def status(self) -> dict:
        return self.start(STATUS).result(TIMEOUT)

    def set(self, **settings: object) -> None:
        """Write the user's settings file while the assistant runs."""
        file = self.machine.home / ".claude" / "settings" / "session-buddy.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({f"akosha_{key}": value for key, value in settings.items()}))

    def set_up(self, **settings: object) -> None:
        """Write the settings that a test starts with: a directory as the bucket."""
        self.set(**{"cloud_endpoint": self.machine.bucket.as_uri(), "http_token": TOKEN} | settings)

    async def _note(self, done: float, total: float | None, message: str | None) -> None:
        self.progress.append((done, total, message or ""))


@contextmanager
def assistant_on(machine: Machine, log: Path, **how: str) -> Iterator[Assistant]:
    directories = ["--data-dir", str(machine.data), "--state-dir", str(machine.state)]
    server = StdioServerParameters(command=COMMAND, args=["mcp", *directories], env=machine.environ, cwd=machine.home)
    with log.open("w") as errors, start_blocking_portal() as portal:
        client = Client(stdio_client(server, errlog=errors), **how)
        with portal.wrap_async_context_manager(client):
            yield Assistant(machine, portal, client)
    errors = log.read_text()
    assert "Traceback" not in errors
    assert TOKEN not in errors


@pytest.fixture(scope="module", params=["mcp2", "mcp1"])
def sdk(request) -> dict[str, str]:
    """Environment variables that select the version of the SDK."""
    if request.param == "mcp2":
        return {}
    if not (FIRST_SDK / "mcp").is_dir():
        pytest.skip(f"there is no MCP SDK of version 1 in {FIRST_SDK}: `make setup`")
    return {"PYTHONPATH": str(FIRST_SDK)}


newest_sdk = pytest.mark.parametrize("sdk", ["mcp2"], indirect=True, scope="module")
"""For a test of what does not depend on the SDK."""


@pytest.fixture(scope="module")
def shared(sdk, tmp_path_factory):
    """One server for the tests that do not end it; each writes the databases it syncs."""
    folder = tmp_path_factory.mktemp("mcp")
    machine = Machine(folder, cloud_endpoint=None, max_retries=0)
    machine.environ |= sdk
    with assistant_on(machine, folder / "log", mode="legacy") as assistant:
        yield assistant


@pytest.fixture
def assistant(shared):
    """The shared server with initial settings, and databases that no target has."""
    shared.set_up()
    shared.machine.write(commits=5, entities=3)
    return shared


@pytest.fixture
def machine(sdk, tmp_path):
    machine = Machine(tmp_path)
    machine.environ |= sdk
    return machine


def notes(machine: Machine) -> list[Path]:
    return list((machine.state / "spool").glob("[!.]*"))


# ------------------------------------------------------------------------------------------------ contract


def test_the_tools_have_the_documented_names_parameters_and_defaults(shared):
    tools = {tool.name: tool for tool in shared.portal.call(shared.client.list_tools).tools}
    assert set(tools) == {SYNC, STATUS, POINTS}
    parameters = tools[SYNC].input_schema["properties"]
    shown = {name: {key: value for key, value in of.items() if key != "description"} for name, of in parameters.items()}
    assert shown == {
        "method": {"type": "string", "enum": ["auto", "cloud", "http"], "default": "auto"},
        "enable_fallback": {"type": "boolean", "default": True},
    }
    assert "required" not in tools[SYNC].input_schema
    assert tools[STATUS].input_schema["properties"] == {}
    assert set(PROMISED) <= set(tools[SYNC].output_schema["required"])
    assert tools[STATUS].annotations.read_only_hint
    assert tools[POINTS].annotations.read_only_hint
    assert tools[SYNC].annotations.idempotent_hint
    assert not tools[SYNC].annotations.read_only_hint
    assert not tools[SYNC].annotations.destructive_hint


def test_the_server_refuses_an_unknown_tool_and_lists_the_known_ones(machine):
    with called(machine) as server:
        (hello,) = [line for line in server.printed.seen if line.get("id") == 1]
        assert hello["result"]["serverInfo"]["name"] == "akosha-agent"
        send(server, "tools/call", id=3, params={"name": "nosuch", "arguments": {}})
        (answer,) = server.printed.wait(lambda line: line.get("id") == 3)
        assert (answer["error"]["code"], STATUS in answer["error"]["message"]) == (-32602, True)
        server.printed.wait(lambda line: line.get("id") == 2)
        server.process.stdin.close()
        assert server.process.wait(TIMEOUT) == 0


def test_a_sync_uploads_what_has_changed_and_reports_its_progress(assistant):
    result = assistant.sync(method="cloud")
    assert (result["success"], result["outcome"], result["method"]) == (True, "succeeded", "cloud")
    assert (result["error"], result["hint"], result["triggered_by"]) == (None, None, "manual")
    assert result["upload_id"] == assistant.machine.manifests[-1]["upload_id"]
    assert {Path(key).name for key in result["files_uploaded"]} >= {"reflection.duckdb", "manifest.json"}
    assert result["bytes_transferred"] > 0
    done = [step[0] for step in assistant.progress]
    assert done == sorted(set(done))
    assert len(done) >= 3
    assert "cloud: " in assistant.progress[1][2]
    assert assistant.progress[-1][0] == assistant.progress[-1][1]
    assert result["upload_id"] in assistant.progress[-1][2]


def test_a_sync_of_unchanged_databases_succeeds_with_a_reason(assistant):
    assert assistant.sync()["outcome"] == "succeeded"
    result = assistant.sync()
    assert (result["success"], result["outcome"], result["files_uploaded"]) == (True, "skipped", [])
    assert "nothing has changed" in result["why"]


def test_concurrent_calls_upload_once(assistant):
    before = len(assistant.machine.manifests)
    calls = [assistant.start(SYNC) for _ in range(3)]
    outcomes = sorted(call.result(TIMEOUT)["outcome"] for call in calls)
    assert outcomes == ["skipped", "skipped", "succeeded"]
    assert len(assistant.machine.manifests) == before + 1
    assert notes(assistant.machine) == []


def test_the_status_has_the_documented_fields_and_masks_the_token(assistant):
    assistant.sync()
    answer = assistant.status()
    expected = {
        "cloud_configured": True,
        "system_id": "laptop",
        "should_use_cloud": True,
        "should_use_http": True,
        "force_method": "auto",
        "enable_fallback": True,
        "upload_on_session_end": True,
        "success": True,
        "pending": [],
        "running": None,
    }
    assert {name: answer[name] for name in expected} == expected
    assert answer["configuration"]["akosha_http_token"] == "********"
    assert answer["configuration"]["akosha_max_retries"] == 0
    assert answer["configuration"]["akosha_cloud_endpoint"] == assistant.machine.bucket.as_uri()
    assert TOKEN not in f"{answer}"
    assert answer["targets"][0]["newest_upload_id"] == assistant.machine.manifests[-1]["upload_id"]
    assistant.machine.write(commits=6)
    assert assistant.status()["pending"] == ["reflection"]


def test_a_failed_upload_is_a_result_with_a_hint(assistant):
    broken = assistant.machine.home / "a-file"
    broken.touch()
    assistant.set_up(cloud_endpoint=(broken / "bucket").as_uri())
    result = assistant.sync(enable_fallback=False)
    assert (result["success"], result["outcome"], result["upload_id"]) == (False, "failed", None)
    assert [error["method"] for error in result["errors"]] == ["cloud"]
    assert str(broken) in result["error"]
    assert result["hint"]
    assert assistant.progress[-1][2] == result["error"]


def test_settings_are_read_at_each_call_and_invalid_ones_are_results(assistant):
    assistant.set_up(max_retries=-1, chunk_size_mb="many")
    for answer in (assistant.sync(), assistant.status()):
        assert answer["success"] is False
        assert "akosha_chunk_size_mb" in answer["error"]
        assert answer["hint"]
    assert (answer["cloud_configured"], answer["configuration"]) == (None, {})
    assistant.set_up(sync_enabled=False)
    answer = assistant.sync()
    assert (answer["success"], answer["hint"]) == (False, "set akosha_sync_enabled to true")
    assert assistant.status()["configuration"]["akosha_sync_enabled"] is False
    assistant.set_up()
    assert assistant.sync()["success"] is True


def test_a_cancelled_call_withdraws_its_note_and_the_next_one_works(assistant):
    assistant.status()  # creates the state directory if this test is the first
    assistant.progress.clear()
    with StateDirectory(assistant.machine.state).lock("holder"):
        call = assistant.start(SYNC)
        wait_until(lambda: any("(holder), which holds" in message for *_, message in assistant.progress))
        wait_until(lambda: notes(assistant.machine))
        assert call.cancel()
        wait_until(lambda: not notes(assistant.machine))
        assert assistant.status()["running"]["command"] == "holder"
    assert assistant.sync()["success"] is True


# ------------------------------------------------------------------------------------------------ with an agent


@newest_sdk
def test_a_running_agent_does_the_sync_and_the_status_shows_it(machine, tmp_path):
    machine.set(agent_upload_on_change="false")
    machine.write(commits=3, entities=2)
    with machine.run() as agent, assistant_on(machine, tmp_path / "log") as assistant:
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        machine.write(commits=4)
        result = assistant.sync()
        assert (result["success"], result["outcome"]) == (True, "succeeded")
        agent.logged("sync_succeeded", request_id=result["request_id"])
        assert f"waiting for process {agent.pid} (run)" in assistant.progress[1][2]
        assert [message for *_, message in assistant.progress if message.startswith("cloud: ")]
        assert result["upload_id"] in assistant.progress[-1][2]
        answer = assistant.status()
        assert (answer["running"]["pid"], answer["running"]["command"]) == (agent.pid, "run")
        assert answer["bus"]["text"]
        assert assistant.sync()["outcome"] == "skipped"


@newest_sdk
def test_a_new_or_unusable_state_directory_is_reported(machine, tmp_path):
    machine.write(commits=1)
    machine.state.touch()
    with assistant_on(machine, tmp_path / "log") as assistant:
        for answer in (assistant.sync(), assistant.status()):
            assert answer["success"] is False
            assert str(machine.state) in answer["error"]
            assert "state_dir" in answer["hint"] or "move it away" in answer["hint"]
        assert answer["configuration"]["akosha_system_id"] == "laptop"
        machine.state.unlink()
        answer = assistant.status()
        assert (answer["success"], "reflection" in answer["pending"]) == (True, True)
        assert answer["targets"][0]["newest_upload_id"] is None
        assert not (machine.state / "ledger.sqlite").exists()


# ------------------------------------------------------------------------------------------------ shutdown


def send(server: Running, method: str, **message: object) -> None:
    server.process.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method} | message) + "\n")
    server.process.stdin.flush()


@contextmanager
def called(machine: Machine) -> Iterator[Running]:
    """The server with a running call of the sync tool, read line by line without the SDK."""
    with machine.started("mcp", stdin=subprocess.PIPE) as server:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        send(server, "initialize", id=1, params=hello)
        server.printed.wait(lambda line: line.get("id") == 1)
        send(server, "notifications/initialized")
        server.process.stdin.write("this is not a message\n")
        send(server, "tools/call", id=2, params={"name": SYNC, "arguments": {}, "_meta": {"progressToken": "p"}})
        yield server
    assert all(line.get("jsonrpc") == "2.0" for line in server.printed.seen), server.printed.raw
    assert "Traceback" not in "".join(server.log.raw)


def test_a_disconnect_of_the_client_withdraws_the_note_and_exits_0(machine):
    machine.write(commits=1)
    StateDirectory(machine.state).prepare()
    with StateDirectory(machine.state).lock("holder"), called(machine) as server:
        server.printed.wait(lambda line: "(holder), which holds" in line.get("params", {}).get("message", ""))
        wait_until(lambda: notes(machine))
        server.process.stdin.close()
        assert server.process.wait(TIMEOUT) == 0
        assert notes(machine) == []


@pytest.mark.parametrize("number", [signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_during_a_sync_cleans_up_and_exits_0(machine, number):
    machine.write(commits=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.environ |= {"AWS_ACCESS_KEY_ID": "scratch", "AWS_SECRET_ACCESS_KEY": "scratch"}
        machine.set(cloud_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", cloud_bucket="memories")
        with called(machine) as server:
            silent.settimeout(TIMEOUT)
            connection, _ = silent.accept()
            with connection:
                assert server.stop(number) == 0
            server.process.stdin.close()
    assert machine.staged == []
    assert machine.status()["running"] is None
