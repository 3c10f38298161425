"""doctor reports what hangs or cannot be read, without delaying other findings."""

import asyncio
import os
import socket
import threading

import pytest
import structlog

from agent.adapters import host_facts
from agent.entrypoints.cli.command import Options
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Level
from agent.entrypoints.doctor.run import CHECKS, diagnose, examine, read_context
from agent.settings import Settings

pytest_plugins = ["tests.support.servers.fixtures"]

LOCAL = [check for check in CHECKS if check.name != "service"]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "data").mkdir()
    return {"agent_data_dir": tmp_path / "data", "agent_state_dir": tmp_path / "state", "system_id": "laptop"}


def make_context(home, settings, **how):
    return DoctorContext(settings=Settings(**settings), environ={}, cwd=home, user_home=home, **how)


def by_name(found):
    return {finding.name: finding for _, finding in found}


async def test_silent_servers_do_not_delay_other_checks(settings, tmp_path, aws):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        context = make_context(
            tmp_path,
            settings
            | {"cloud_bucket": "memories", "cloud_endpoint": f"http://127.0.0.1:{port}"}
            | {"http_endpoint": f"http://127.0.0.1:{port}/mcp", "agent_nats_url": f"nats://127.0.0.1:{port}"},
            step_seconds=60,
        )
        found = by_name(await examine(context, LOCAL, seconds=3))
    for name in ("bucket", "leftovers", "clock", "NATS"):
        assert (found[name].level, "no answer" in found[name].found) == (Level.ERROR, True), found[name]
    assert found["Akosha"].level in (Level.ERROR, Level.WARNING)
    assert found["data directory"].level is Level.OK
    assert found["state directory"].level is Level.OK
    assert all(one.hint for one in found.values() if one.level in (Level.WARNING, Level.ERROR))


def test_a_hanging_share_is_reported_and_doctor_ends(settings, tmp_path, monkeypatch):
    """Like an unreachable NFS server: the system call does not return, even if the check is cancelled."""
    release, real = threading.Event(), host_facts.folder

    def folder(path):
        if path == settings["agent_data_dir"]:
            release.wait(60)
        return real(path)

    monkeypatch.setattr(host_facts, "folder", folder)
    try:
        checks = [check for check in LOCAL if check.name not in ("Akosha", "clock")]
        found = by_name(asyncio.run(examine(make_context(tmp_path, settings), checks, seconds=2)))
    finally:
        release.set()
    assert found["data directory"].level is Level.ERROR
    assert "mount" in found["data directory"].hint
    assert found["versions"].level is Level.OK
    assert found["inotify"].level is not Level.ERROR


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A temporary home. The log configuration is reset afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("AKOSHA_", "SESSION_BUDDY_", "AWS_", "XDG_STATE")):
            monkeypatch.delenv(name)
    yield tmp_path
    structlog.reset_defaults()


def test_invalid_settings_are_a_finding_and_other_checks_run(home, monkeypatch, capsys):
    monkeypatch.setenv("SESSION_BUDDY_AKOSHA_MAX_RETRIES", "many")
    monkeypatch.setenv("AKOSHA_AGENT_STATE_DIR", "~/state")
    (home / "data").mkdir()
    (home / "data" / "reflection.duckdb").touch()
    (home / ".claude").mkdir()
    (home / ".claude" / "settings.json").write_text("{")
    context = read_context(Options(data_dir=home / "data"))
    assert context.settings.agent_state_dir == home / "state"
    assert asyncio.run(diagnose(context, as_json=False)) == 2
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert output.err == ""
    assert lines[0].startswith("error    settings: akosha_max_retries is 'many' (env SESSION_BUDDY_AKOSHA_MAX_RETRIES)")
    assert lines[1].startswith("         -> correct it")
    assert any(line.startswith("error    database reflection: ") for line in lines)
    assert any(line.startswith("error    session-end hook: ") for line in lines)
    assert any(line.startswith("skipped  bucket: the settings are invalid") for line in lines)
    assert not (home / "state").exists()


def test_invalid_directory_settings_are_replaced_by_the_defaults(home, monkeypatch):
    monkeypatch.setenv("AKOSHA_AGENT_STATE_DIR", "~no-such-user/state")
    context = read_context(Options())
    assert context.settings_error is not None
    assert context.settings.agent_data_dir == home / ".claude" / "data"
