"""The hook as Claude Code runs it, with and without a running agent; and its installation and removal."""

import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from agent.entrypoints.cli.app import app
from agent.entrypoints.hook import hook_command
from agent.settings.sources import variable
from tests.faults import restricted
from tests.support.hook import run_hook
from tests.support.machine import COMMAND, Machine

SESSIONS = 100


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, agent_upload_on_change="false")


def end_session(machine, session_id: str, prefix=(COMMAND,)) -> None:
    data = json.dumps({"session_id": session_id, "reason": "other", "hook_event_name": "SessionEnd"})
    words = [*prefix, "hook", "session-end", "--state-dir", str(machine.state)]
    done = run_hook(words, data=data.encode(), env=machine.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr


@pytest.mark.long
def test_every_session_end_is_accepted_once_and_a_hundred_cause_one_upload(machine):
    """Before the agent's first start, while it is suspended, if no note can be written, and a hundred at once."""
    machine.write(commits=1, entities=1)
    end_session(machine, "before")
    with machine.run() as agent:
        agent.logged("session_ended", session_id="before")
        agent.logged("sync_succeeded")
        agent.process.send_signal(signal.SIGSTOP)
        end_session(machine, "stopped")
        agent.process.send_signal(signal.SIGCONT)
        agent.logged("session_ended", session_id="stopped")
        end_session(machine, "full", prefix=[sys.executable, restricted.__file__, "file-limit:100"])
        agent.logged("session_ended", session_id="full")
        machine.write(commits=2)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: end_session(machine, f"one of many, {n}"), range(SESSIONS)))
        ended = agent.logged("session_ended", SESSIONS + 3, reason="other")
        assert len({line["session_id"] for line in ended}) == len(ended) == SESSIONS + 3
        agent.logged("sync_succeeded", 2)
        assert not [line for line in agent.log.seen if line.get("event") == "note_refused"]
    assert len(machine.manifests) == 2


def test_session_ends_without_an_agent_are_counted_and_accepted_by_sync(machine):
    machine.write(commits=1)
    machine.set(agent_upload_on_change="true")
    for number in range(5):
        end_session(machine, f"unheard {number}")
    hint = "run akosha-agent sync once, or start an agent: akosha-agent service install, or akosha-agent run"
    message = "5 notes of ended sessions wait in the spool, and no agent is running"
    (warning,) = machine.status()["warnings"]
    assert (warning["code"], warning["message"], warning["hint"]) == ("notes_waiting", message, hint)
    assert message in machine.call("status").out
    found = [one for one in machine.call("doctor", "--json").json["checks"] if one["detail"] == "notes_waiting"]
    assert [(one["level"], one["found"], one["cure"]) for one in found] == [("warning", message, hint)]
    kept = {path.name: path.read_bytes() for path in (machine.state / "spool").glob("[!.]*.json")}
    result = machine.sync()
    assert (result["success"], len(result["caused_by"])) == (True, 5)
    assert set(result["caused_by"]) == {json.loads(note)["id"] for note in kept.values()}
    assert (list((machine.state / "spool").iterdir()), machine.status()["warnings"]) == ([], [])
    for name, note in kept.items():  # the same events again, from the spool
        (machine.state / "spool" / name).write_bytes(note)
    machine.write(commits=2)
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        assert machine.status(lambda _: not list((machine.state / "spool").glob("[!.]*.json")))["warnings"] == []
    assert "session_ended" not in [line.get("event") for line in agent.log.seen]


@pytest.fixture
def hook(machine, monkeypatch):
    for name in set(machine.environ):
        monkeypatch.setenv(name, machine.environ[name])
    monkeypatch.setenv(variable("agent_data_dir"), str(machine.data))
    monkeypatch.setenv(variable("agent_state_dir"), str(machine.state))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    monkeypatch.chdir(machine.home)
    return lambda *words: CliRunner().invoke(app, ["hook", *words])


def test_an_installed_hook_runs_in_any_environment_and_uninstall_removes_it(machine, hook, monkeypatch):
    settings = machine.home / ".claude" / "settings.json"
    absent = hook("status")
    assert (absent.exit_code, absent.stdout.splitlines()[0].split(": ")[0]) == (1, "hook     not installed")
    assert hook("install").exit_code == 0
    again = hook("install").stdout
    assert again.startswith("already installed")
    assert (
        "agent    not running: sessions that end are noted, and uploaded when it starts. To start it: akosha-agent"
        in again
    )
    status = hook("status", "--json")
    assert (status.exit_code, json.loads(status.stdout)["state"]) == (0, "installed")
    ((entry,),) = [group["hooks"] for group in json.loads(settings.read_bytes())["hooks"]["SessionEnd"]]
    data = b'{"session_id": "s-1", "reason": "clear"}'
    # Its own `agent` package would be imported first if the working directory were on the path.
    project = machine.home / "project"
    (project / "agent").mkdir(parents=True)
    (project / "agent" / "__init__.py").write_text("raise SystemExit('another agent')")
    shell = ["/bin/sh", "-c", entry["command"]]
    environ = {"PYTHONPATH": str(project)}
    done = run_hook(shell, data=data, env=environ, cwd=project)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (note,) = (machine.state / "spool").iterdir()
    event = json.loads(note.read_bytes())
    assert (event["source"], event["data"]["session_id"]) == ("urn:akosha-agent:laptop", "s-1")
    monkeypatch.setattr(hook_command.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    moved = hook("status")
    assert (moved.exit_code, moved.stdout.split(":")[0]) == (1, "hook     outdated")
    assert hook("install").stdout.startswith("updated")
    assert "broken: /nowhere/python does not exist" in hook("status").stdout
    assert "\nfile     deleted: hook install had created it" in hook("uninstall").stdout
    assert not settings.parent.exists()
    assert hook("uninstall").stdout.startswith("not installed")


def claude_code(folder, monkeypatch, version: str) -> None:
    """Put a `claude` of this version first on PATH."""
    program = folder / "bin" / "claude"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho '{version} (Claude Code)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_install_replaces_a_shell_hook_by_the_exec_form_if_supported(machine, hook, monkeypatch):
    settings = machine.home / ".claude" / "settings.json"
    state = machine.state.with_name("state of $HOME's")
    monkeypatch.setenv(variable("agent_state_dir"), str(state))
    claude_code(machine.home, monkeypatch, "2.1.138")
    assert hook("install").exit_code == 0
    (shell,) = entries(settings)
    assert ("args" in shell, hook("status").exit_code) == (False, 0)
    claude_code(machine.home, monkeypatch, "2.1.139")
    assert hook("status").exit_code == 0, "a shell line runs in every version"
    assert hook("install").stdout.startswith("updated")
    (direct,) = entries(settings)
    done = run_hook([direct["command"], *direct["args"]], data=b"{}", env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len(list((state / "spool").glob("[!.]*.json"))) == 1
    (command,) = json.loads(hook("status", "--json").stdout)["commands"]
    assert command["form"] == "exec"
    claude_code(machine.home, monkeypatch, "garbage")
    assert hook("install").stdout.startswith("already installed"), "an unknown version changes nothing"
    claude_code(machine.home, monkeypatch, "2.0.9")
    assert (hook("status").exit_code, "older than 2.1.139" in hook("status").stdout) == (1, True)
    assert hook("install").stdout.startswith("updated")
    assert entries(settings) == [shell]
    assert hook("uninstall").exit_code == 0
    assert not settings.parent.exists()


def entries(settings) -> list[dict]:
    return [one for group in json.loads(settings.read_bytes())["hooks"]["SessionEnd"] for one in group["hooks"]]


def test_claude_config_dir_sets_the_location_of_the_settings(machine, hook, monkeypatch):
    moved = machine.home / "elsewhere" / "claude"
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(moved))
    assert hook("install").exit_code == 0
    assert len(entries(moved / "settings.json")) == 1
    assert json.loads(hook("status", "--json").stdout)["file"] == str(moved / "settings.json")
    machine.environ["CLAUDE_CONFIG_DIR"] = str(moved)
    findings = {one["name"]: one for one in machine.call("doctor", "--json").json["checks"]}
    assert (findings["session-end hook"]["level"], (machine.home / ".claude").exists()) == ("ok", False)
    assert hook("uninstall").exit_code == 0
    assert not moved.exists()


def test_with_the_plugin_the_hook_is_not_installed_a_second_time(machine, hook):
    settings, program = machine.home / ".claude" / "settings.json", machine.home / ".local" / "bin" / "akosha-agent"
    program.parent.mkdir(parents=True)
    program.symlink_to(COMMAND)
    assert hook("install").exit_code == 0
    document = json.loads(settings.read_bytes()) | {"enabledPlugins": {"akosha-agent@akosha": True}}
    settings.write_text(json.dumps(document))
    twice = hook("status")
    assert (twice.exit_code, "which is harmless\n" in twice.stdout) == (0, True)
    done = hook("install").stdout
    assert done.startswith("not needed: the plugin akosha-agent@akosha of Claude Code has this hook\n")
    assert "akosha-agent hook uninstall" in done
    assert json.loads(settings.read_bytes()) == document
    assert "the plugin of Claude Code has the hook, too" in hook("uninstall").stdout
    before = settings.read_bytes()
    assert hook("install").stdout.count("\n") == 1
    assert settings.read_bytes() == before
    alone = hook("status")
    assert alone.exit_code == 0
    assert alone.stdout.startswith("hook     installed: by the plugin akosha-agent@akosha\n")


def test_a_settings_file_that_cannot_be_edited_exits_2_with_the_reason(machine, hook):
    settings = machine.home / "other.json"
    settings.write_text('{\n  "hooks": 1\n}')
    for command in ("install", "uninstall", "status"):
        done = hook(command, "--settings-file", str(settings))
        assert done.exit_code == 2
        assert "other.json: hooks is not an object" in done.output
    assert settings.read_text() == '{\n  "hooks": 1\n}'
