"""`service`: install, upgrade, status and uninstall in a temporary home, with recording systemctl and launchctl."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.adapters.state_directory import StateDirectory
from agent.entrypoints.cli.app import app
from agent.entrypoints.service import commands, environment, program as programs, status
from agent.entrypoints.service.launchd import Launchd
from agent.entrypoints.service.manager import Runner
from tests.support.machine import COMMAND
from tests.support.service_commands import OTHER_COMMAND, SYSTEMCTL, UNIT

MY_UID = os.getuid()

LAUNCHCTL = """#!/bin/sh
echo "launchctl $*" >> "$FAKE/log"
case "$1" in
  print)
    case "$2" in
      */*/*) [ -e "$FAKE/running" ] || exit 113; printf 'x = {\\n\\tstate = running\\n\\tpid = 4711\\n}\\n' ;;
    esac ;;
  bootstrap|kickstart) touch "$FAKE/running" ;;
  bootout|kill) rm -f "$FAKE/running" ;;
esac
"""


@dataclass
class Scratch:
    """A temporary home, and a platform whose commands are recorded."""

    home: Path
    fake: Path

    def call(self, *words: str, code: int = 0) -> Result:
        done = CliRunner().invoke(app, ["service", *words], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    def commands_run(self) -> list[str]:
        """Return the commands that were run since the last call, without queries."""
        log = self.fake / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        queries = (" --user show ", "loginctl show-user", "launchctl print", "ps ")
        return [line for line in lines if not any(word in line for word in queries)]

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Return mode and bytes of everything below the home."""
        return {
            str(path.relative_to(self.home)): (
                path.lstat().st_mode,
                path.read_bytes() if path.is_file() else b"",
            )
            for path in sorted(self.home.rglob("*"))
        }

    @property
    def unit(self) -> Path:
        return self.home / ".config" / "systemd" / "user" / UNIT

    @property
    def environment(self) -> Path:
        return self.home / ".config" / "akosha-agent" / "environment"


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Scratch:
    fake, home = tmp_path / "fake", tmp_path / "home"
    fake.mkdir()
    for name, text in (
        ("systemctl", SYSTEMCTL),
        ("launchctl", LAUNCHCTL),
        ("loginctl", OTHER_COMMAND),
        ("ps", OTHER_COMMAND),
    ):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    (home / ".config" / "session-buddy").mkdir(parents=True)
    (home / ".config" / "session-buddy" / "config.yaml").write_text("akosha_cloud_endpoint: file:///bucket\n")
    (home / "Library" / "LaunchAgents").mkdir(parents=True)
    for name in os.environ:
        if name.startswith(("SESSION_BUDDY_", "AKOSHA_", "AWS_", "XDG_", "SSL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.setenv("PATH", f"{fake}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(programs, "_TEMPORARY", ())
    monkeypatch.setattr(programs.tempfile, "gettempdir", lambda: "/nowhere")
    monkeypatch.chdir(home)
    return Scratch(home, fake)


def test_uninstall_removes_everything_after_install_and_upgrade(scratch, monkeypatch):
    before = scratch.tree()
    done = scratch.call("install", "--data-dir", "some data")
    assert str(scratch.unit) in done.output
    assert "loginctl enable-linger" in done.output
    assert scratch.commands_run() == [
        f"systemctl --user {words}" for words in ("daemon-reload", f"enable {UNIT}", f"start {UNIT}")
    ]
    assert f'ExecStart={COMMAND} run --data-dir "{scratch.home}/some data"\n' in scratch.unit.read_text()
    assert stat.S_IMODE(scratch.environment.stat().st_mode) == 0o600
    installed = scratch.tree()
    service = json.loads(scratch.call("status", "--json").output)
    assert (service["installed"], service["enabled"], service["running"]) == (True, True, True)
    assert (service["outdated"], service["pid"], service["path"]) == (False, 4711, str(scratch.unit))

    assert "up to date" in scratch.call("install", "--data-dir", "some data").output
    assert scratch.commands_run() == []
    assert scratch.tree() == installed

    from agent.entrypoints.service import systemd

    newer = systemd.template(f"systemd/{UNIT}").replace("Nice=10", "Nice=11")
    monkeypatch.setattr(systemd, "template", lambda _: newer)
    assert json.loads(scratch.call("status", "--json").output)["outdated"]
    assert "replaces" in scratch.call("install", "--data-dir", "some data").output
    assert scratch.commands_run() == [f"systemctl --user {words}" for words in ("daemon-reload", f"restart {UNIT}")]
    assert "Nice=11" in scratch.unit.read_text()
    assert not list(scratch.unit.parent.glob("*.bak"))

    # As an earlier version has written it.
    monkeypatch.setattr(environment, "_EARLIER_TEMPLATES", {hashlib.sha256(b"# earlier\n").hexdigest()})
    scratch.environment.write_text("# earlier\n")
    scratch.call("uninstall")
    assert scratch.commands_run() == [
        f"systemctl --user {words}" for words in (f"disable --now {UNIT}", "daemon-reload", f"reset-failed {UNIT}")
    ]
    assert scratch.tree() == before
    assert "not installed" in scratch.call("uninstall").output
    assert scratch.commands_run() == []


@pytest.mark.parametrize("words", [("install",), ("install", "--no-start", "--linger"), ("uninstall",)], ids=" ".join)
def test_a_dry_run_prints_every_step_and_changes_nothing(scratch, words):
    if words == ("uninstall",):
        scratch.call("install")
        scratch.commands_run()
    before = scratch.tree()
    done = scratch.call(*words, "--dry-run")
    assert scratch.tree() == before
    assert scratch.commands_run() == []
    assert str(scratch.unit) in done.output
    assert "$ systemctl --user" in done.output
    assert ("ExecStart=" in done.output) == (words[0] == "install")
    assert ("$ loginctl enable-linger" in done.output) == ("--linger" in words)


def test_changes_by_the_user_are_kept(scratch):
    scratch.call("install")
    scratch.unit.write_text(scratch.unit.read_text().replace("Nice=10", "Nice=1"))
    scratch.environment.write_text("AWS_ACCESS_KEY_ID=canary-1\n")
    scratch.environment.chmod(0o644)
    done = scratch.call("install")
    assert "drop-in" in done.output
    assert "canary-1" not in done.output
    assert "Nice=1\n" in scratch.unit.with_name(f"{UNIT}.bak").read_text()
    assert "Nice=10\n" in scratch.unit.read_text()
    assert stat.S_IMODE(scratch.environment.stat().st_mode) == 0o600
    own = scratch.unit.with_name(f"{UNIT}.d")
    own.mkdir()
    assert str(own) in scratch.call("uninstall").output
    assert not scratch.unit.exists()
    assert own.exists()
    assert scratch.environment.read_text() == "AWS_ACCESS_KEY_ID=canary-1\n"
    assert scratch.unit.with_name(f"{UNIT}.bak").exists()


def test_a_symlink_at_the_units_path_is_kept_and_not_followed(scratch):
    linked = scratch.home / "dotfiles.service"
    linked.write_text("[Service]\n")
    scratch.unit.parent.mkdir(parents=True)
    for target in (linked, Path("/nowhere")):
        scratch.unit.unlink(missing_ok=True)
        scratch.unit.symlink_to(target)
        assert "edited since it was installed" in scratch.call("install", "--no-start").output
    assert linked.read_text() == "[Service]\n"
    assert scratch.unit.with_name(f"{UNIT}.bak").readlink() == linked
    assert scratch.unit.with_name(f"{UNIT}.bak2").is_symlink()
    assert not scratch.unit.is_symlink()


def test_a_linux_without_systemd_names_the_alternative(scratch, monkeypatch):
    monkeypatch.setenv("PATH", str(scratch.home))
    before = scratch.tree()
    assert "systemctl cannot be run" in scratch.call("install", code=1).stderr
    assert "docs/guides/service.md" in scratch.call("status", code=1).output
    assert scratch.tree() == before


def test_invalid_settings_exit_2_before_anything_is_written(scratch):
    before = scratch.tree()
    done = scratch.call("install", "--settings", "none.yaml", code=2)
    assert "none.yaml does not exist" in done.stderr
    scratch.environment.parent.mkdir()
    scratch.environment.write_text("SESSION_BUDDY_AKOSHA_MAX_RETRIES=many\n")
    scratch.environment.chmod(0o600)
    assert "akosha_max_retries" in scratch.call("install", code=2).stderr
    scratch.environment.unlink()
    scratch.environment.parent.rmdir()
    assert scratch.tree() == before
    assert scratch.commands_run() == []


def test_install_names_the_command_that_stores_what_is_set_in_this_shell_only(scratch, monkeypatch):
    variables = {
        "AWS_ACCESS_KEY_ID": "canary-1", "AWS_SECRET_ACCESS_KEY": "canary-2", "AKOSHA_CLOUD_BUCKET": "my-bucket",
        "SESSION_BUDDY_AKOSHA_HTTP_TOKEN": "canary-3", "HTTPS_PROXY": "http://proxy",
        "SESSION_BUDDY_DATA_DIR": "/elsewhere",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (scratch.home / ".config" / "session-buddy" / "config.yaml").write_text("akosha_max_retries: 3\n")
    done = scratch.call("install", "--no-start")
    assert "canary" not in done.output
    assert done.stderr.splitlines() == [
        "warning: AKOSHA_CLOUD_BUCKET is set in this shell only: akosha-agent config set cloud_bucket my-bucket",
        "warning: SESSION_BUDDY_AKOSHA_HTTP_TOKEN is set in this shell only: akosha-agent config set http_token -",
        "warning: SESSION_BUDDY_DATA_DIR is set in this shell only: akosha-agent config set agent_data_dir /elsewhere",
        (
            "warning: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set in this shell only: "
            "akosha-agent config set cloud_access_key_id - cloud_secret_access_key -"
        ),
        (
            "warning: the service lacks variables of this shell: HTTPS_PROXY. To add them, put them into "
            f"{scratch.environment}"
        ),
    ]
    monkeypatch.delenv("HTTPS_PROXY")
    own = scratch.home / ".config" / "akosha-agent"
    (own / "config.yaml").write_text("cloud_bucket: my-bucket\nagent_data_dir: /elsewhere\n")
    secrets = own / "credentials.yaml"
    secrets.write_text("http_token: canary-3\ncloud_access_key_id: canary-1\ncloud_secret_access_key: canary-2\n")
    secrets.chmod(0o600)
    assert scratch.call("install", "--no-start").stderr == ""
    assert "macOS" in scratch.call("install", "--with-environment", code=1).stderr


def test_the_service_that_init_installs_has_the_settings_that_it_stored(scratch, monkeypatch):
    monkeypatch.setenv("AKOSHA_CLOUD_REGION", "of-this-shell")
    (scratch.home / "nas").mkdir()
    target = (scratch.home / "nas" / "memories").as_uri()
    words = ["init", "--yes", "--to", target, "--system-id", "laptop", "--service"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (scratch.fake / "running").exists()
    assert "Environment=" not in scratch.unit.read_text()
    monkeypatch.delenv("AKOSHA_CLOUD_REGION")
    found = commands._installed_settings(commands._manager(scratch.home, dry_run=False)[0])
    assert (found.cloud_endpoint, found.system_id, found.cloud_region) == (target, "laptop", "auto")


def test_without_a_session_install_names_the_fix_and_no_start_works(scratch):
    before = scratch.tree()
    (scratch.fake / "unreachable").touch()
    done = scratch.call("install", code=1)
    for word in ("Failed to connect to bus", "machinectl shell", "enable-linger", "--no-start"):
        assert word in done.stderr
    assert scratch.tree() == before
    assert scratch.commands_run() == []
    scratch.call("install", "--no-start")
    assert scratch.commands_run() == [f"systemctl --user enable {UNIT}"]
    assert scratch.unit.exists()
    status = scratch.call("status", code=1).output
    assert "enabled    unknown\nrunning    unknown\n" in status
    assert "cannot be reached" in status
    scratch.call("uninstall")
    assert scratch.commands_run() == [f"systemctl --user disable {UNIT}"]
    assert scratch.tree() == before


def test_start_restart_and_stop_call_systemctl(scratch):
    assert "not installed" in scratch.call("start", code=1).stderr
    scratch.call("install", "--no-start")
    assert "running    no" in scratch.call("status", code=1).output
    scratch.commands_run()
    for word in ("start", "restart", "stop"):
        scratch.call(word)
    assert scratch.commands_run() == [f"systemctl --user {word} {UNIT}" for word in ("start", "restart", "stop")]
    (scratch.fake / "broken").touch()
    assert "Job failed" in scratch.call("start", code=1).stderr


def test_the_service_is_not_started_while_another_agent_runs(scratch):
    """Two agents cannot share a state directory: the service would fail and restart every 30 s until the other ends."""
    state = StateDirectory(scratch.home / "state")
    state.prepare()
    scratch.call("install", "--no-start", "--state-dir", str(state.path))
    before = scratch.tree()
    scratch.commands_run()
    with state.lock("run"):
        for words in (("install", "--state-dir", str(state.path)), ("start",), ("restart",)):
            done = scratch.call(*words, code=1)
            for text in (f"process {os.getpid()} (run)", str(state.path), f"kill {os.getpid()}", "--no-start"):
                assert text in done.stderr
        assert scratch.commands_run() == []
        scratch.call("install", "--no-start", "--state-dir", str(state.path))
    assert scratch.tree().keys() - before.keys() <= {"state/agent.lock"}
    scratch.commands_run()
    with state.lock("sync"):
        scratch.call("start")
    assert scratch.commands_run() == [f"systemctl --user start {UNIT}"]


def test_a_dry_run_without_a_session_ends_as_the_install_does(scratch):
    (scratch.fake / "unreachable").touch()
    done = scratch.call("install", "--dry-run", code=1)
    assert done.stderr == scratch.call("install", code=1).stderr
    assert done.stdout == ""
    assert "ExecStart=" in scratch.call("install", "--no-start", "--dry-run").output


def test_the_home_of_another_user_is_refused(scratch, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: MY_UID + 1)
    assert "without sudo" in scratch.call("install", code=1).stderr
    assert not scratch.unit.exists()


def test_logs_shows_the_journal_or_the_configured_file(scratch, monkeypatch):
    scratch.call("install")
    executed = []

    def replace_process(_, *words):
        executed.extend(words)
        raise SystemExit(0)

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "replace_process", replace_process)
        scratch.call("logs", "-f", "-n", "5")
    assert executed == ["journalctl", f"--user-unit={UNIT}", "--lines=5", "--no-pager", "--follow"]
    (scratch.home / "agent.log").write_text("one\ntwo\n")
    scratch.environment.write_text(f"AKOSHA_AGENT_LOG_FILE={scratch.home}/agent.log\n")
    done = subprocess.run([COMMAND, "service", "logs", "-n", "1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two\n", "")


def test_uninstall_removes_the_launchd_agent_after_install_and_upgrade(scratch, monkeypatch):
    monkeypatch.setattr(commands, "service_manager", Launchd)
    monkeypatch.setattr(status, "service_manager", Launchd)
    before = scratch.tree()
    file = scratch.home / "Library" / "LaunchAgents" / "org.akosha.agent.plist"
    target = f"gui/{MY_UID}/org.akosha.agent"
    scratch.call("install")
    assert scratch.commands_run() == [f"launchctl enable {target}", f"launchctl bootstrap gui/{MY_UID} {file}"]
    assert scratch.call("status").output.startswith("installed")
    scratch.call("install")
    assert scratch.commands_run() == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-1")
    assert "canary-1" not in scratch.call("install", "--with-environment", "--dry-run").output
    assert "canary-1" not in scratch.call("install", "--with-environment").output
    assert scratch.commands_run() == [f"launchctl bootout {target}", f"launchctl bootstrap gui/{MY_UID} {file}"]
    assert "canary-1" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-2")
    assert "expire" in scratch.call("install", "--with-environment", code=1).stderr
    for word in ("stop", "start"):
        scratch.call(word)
    assert scratch.commands_run() == [f"launchctl kill SIGTERM {target}", f"launchctl bootstrap gui/{MY_UID} {file}"]
    scratch.call("uninstall")
    assert scratch.commands_run() == [f"launchctl bootout {target}"]
    assert scratch.tree() == before
