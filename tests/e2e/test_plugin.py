"""Claude Code's plugin, whose hook and MCP server are started as Claude Code starts them."""

import json
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from agent.entrypoints.mcp.tools import STATUS, TOOL_NAMES
from tests.support.hook import run_hook
from tests.support.machine import COMMAND, TIMEOUT, Machine
from tests.support.plugin import environment, hook_words, server_words

SESSION = {"session_id": "s-1", "transcript_path": "/t", "hook_event_name": "SessionEnd", "reason": "logout"}


@pytest.fixture
def machine(tmp_path):
    """A machine with `akosha-agent` on PATH, whose directories and ID are in the agent's settings file only."""
    machine = Machine(tmp_path, system_id=None)
    program = machine.home / "programs" / "akosha-agent"
    program.parent.mkdir()
    program.symlink_to(COMMAND)
    machine.environ |= {"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": str(machine.home)}
    settings = machine.home / ".config" / "akosha-agent" / "config.yaml"
    settings.parent.mkdir(parents=True)
    directories = {"agent_data_dir": str(machine.data), "agent_state_dir": str(machine.state)}
    settings.write_text(json.dumps(directories | {"system_id": "my-mac"}))
    (machine.home / "agent.py").write_text("raise SystemExit('another agent, in a project')")
    machine.environ = environment(machine.environ)
    return machine


def end_session(machine: Machine) -> None:
    done = run_hook(hook_words(), data=json.dumps(SESSION).encode(), env=machine.environ, cwd=machine.home)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def notes(machine: Machine) -> list[Path]:
    return list((machine.state / "spool").glob("[!.]*.json"))


def test_the_hook_notes_the_end_of_a_session_for_the_agent_of_the_settings(machine):
    end_session(machine)
    (note,) = notes(machine)
    event = json.loads(note.read_bytes())
    assert (event["source"], event["data"]["session_id"]) == ("urn:akosha-agent:my-mac", "s-1")


def test_the_hook_and_the_server_work_with_a_running_agent(machine):
    del machine.environ["PYTHONPATH"]  # for the agent, whose starter sets it
    machine.write(commits=1)
    machine.set(agent_upload_on_change="false")
    with machine.run(directories=False) as agent:
        machine.environ["PYTHONPATH"] = str(machine.home)
        end_session(machine)
        agent.logged("session_ended", session_id="s-1", reason="logout", system_id="my-mac")
        agent.logged("sync_succeeded")
        command, *arguments = server_words()
        server = StdioServerParameters(command=command, args=arguments, env=machine.environ, cwd=machine.home)
        with start_blocking_portal() as portal:
            client = Client(stdio_client(server))
            with portal.wrap_async_context_manager(client):
                tools = portal.start_task_soon(client.list_tools).result(TIMEOUT)
                status = portal.start_task_soon(client.call_tool, STATUS, {}).result(TIMEOUT).structured_content
    assert {tool.name for tool in tools.tools} == set(TOOL_NAMES)
    assert (status["success"], status["running"]["pid"]) == (True, agent.pid)
    assert (status["system_id"], status["state_dir"]) == ("my-mac", str(machine.state))
    assert len(machine.manifests) == 1
