"""The exact commands that are run for systemd and launchd."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.domain.errors import AkoshaError
from agent.entrypoints.service import service_file
from agent.entrypoints.service.launchd import Launchd
from agent.entrypoints.service.manager import CommandResult, Runner, ServiceSpec, ServiceState
from agent.entrypoints.service.status import service_manager, service_status, status_of
from agent.entrypoints.service.systemd import Systemd

UNIT = "akosha-agent.service"
ME = os.getuid()
TARGET = f"gui/{ME}/org.akosha.agent"

RUNNING = """LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
MainPID=4711
ExecMainStartTimestamp=Sat 2026-11-21 18:36:15 UTC
ExecMainCode=0
ExecMainStatus=0
Result=success
NRestarts=2
StatusText=nothing pending"""
FAILED = """LoadState=loaded
ActiveState=failed
SubState=failed
UnitFileState=enabled
MainPID=0
ExecMainStartTimestamp=Sat 2026-11-21 18:36:15 UTC
ExecMainCode=1
ExecMainStatus=2
Result=exit-code"""
PRINTED = f"""{TARGET} = {{
\tactive count = 1
\tpath = /Users/jo/Library/LaunchAgents/org.akosha.agent.plist
\tstate = running

\tprogram = /Users/jo/.local/bin/akosha-agent
\tdefault environment = {{
\t\tPATH => /usr/bin:/bin:/usr/sbin:/sbin
\t\tstate = something else
\t}}
\truns = 1
\tpid = 4711
\tlast exit code = (never exited)
}}"""
NO_SUCH = CommandResult(113, "", "Could not find service")


class RecordingRunner(Runner):
    """A runner that answers queries from a table, by one of their words, and records the other commands."""

    def __init__(self, answers: Mapping[str, CommandResult] = {}, *, dry: bool = False, **environ: str) -> None:
        super().__init__(environ, dry_run=dry, say=lambda _: None)
        self.answers, self.queries, self.done, self.replaced_by = dict(answers), [], [], []

    def query(self, *words):
        self.queries.append(words)
        keys = [word for word in words if word in self.answers]
        return self.answers[keys[0]] if keys else CommandResult(1, "", "no answer")

    def execute(self, *words, ignore_failure=False):
        self.done.append((*words, "?") if ignore_failure else words)

    def replace_process(self, *words):
        self.replaced_by.append(words)
        raise SystemExit


def systemd(tmp_path: Path, show: str | None, linger: str = "no") -> tuple[Systemd, RecordingRunner]:
    answers = {"loginctl": CommandResult(0, linger, "")} | (
        {} if show is None else {"systemctl": CommandResult(0, show, "")}
    )
    recording = RecordingRunner(answers)
    return Systemd(tmp_path, recording), recording


def state(**values: object) -> ServiceState:
    return ServiceState(**{"enabled": True, "loaded": True, "running": True} | values)


def test_the_state_of_systemd_takes_one_query(tmp_path):
    manager, recording = systemd(tmp_path, RUNNING, "yes")
    found = manager.state()
    assert (found.enabled, found.loaded, found.running, found.pid, found.last_exit) == (True, True, True, 4711, "")
    assert found.since == datetime(2026, 11, 21, 18, 36, 15, tzinfo=UTC)
    assert found.text == "active (running) restarted 2 times status: nothing pending"
    assert found.linger.startswith("yes")
    assert [words[:4] for words in recording.queries] == [
        ("systemctl", "--user", "show", UNIT),
        ("loginctl", "show-user", str(os.geteuid()), "--property=Linger"),
    ]


def test_an_invalid_setting_is_distinguished_from_other_exits(tmp_path):
    manager, _ = systemd(tmp_path, FAILED)
    service_file.write(manager.file, manager.render(ServiceSpec(("/bin/sh", "run"))), 0o644)
    status = status_of(manager)
    assert (status.installed, status.running, status.last_exit) == (True, False, "2")
    assert "a setting is wrong" in status.detail
    died = FAILED.replace(
        "ExecMainCode=1\nExecMainStatus=2\nResult=exit-code", "ExecMainCode=2\nExecMainStatus=6\nResult=watchdog"
    )
    assert systemd(tmp_path, died)[0].state().last_exit == "signal 6, watchdog"


def test_an_unreachable_systemd_is_an_error_with_hints(tmp_path):
    manager, _ = systemd(tmp_path, None)
    with pytest.raises(AkoshaError, match="no answer") as raised:
        manager.state()
    for command in ("machinectl shell", "ssh", "enable-linger", "akosha-agent run"):
        assert command in raised.value.hint


SYSTEMD_STEPS = [
    pytest.param(
        state(enabled=False, loaded=False, running=False),
        {"changed": True, "start": True},
        [("daemon-reload",), ("enable", UNIT), ("start", UNIT)],
        id="new",
    ),
    pytest.param(state(), {"changed": False, "start": True}, [], id="again"),
    pytest.param(state(), {"changed": True, "start": True}, [("daemon-reload",), ("restart", UNIT)], id="upgrade"),
    pytest.param(state(), {"changed": True, "start": False}, [("daemon-reload",)], id="upgrade-no-start"),
    pytest.param(
        state(running=False, text="failed (failed)"),
        {"changed": False, "start": True},
        [("reset-failed", UNIT, "?"), ("start", UNIT)],
        id="failed",
    ),
]


@pytest.mark.parametrize(("before", "options", "steps"), SYSTEMD_STEPS)
def test_systemd_runs_only_the_necessary_commands(tmp_path, before, options, steps):
    manager, recording = systemd(tmp_path, RUNNING)
    manager.enable(before, **options)
    assert recording.done == [("systemctl", "--user", *step) for step in steps]


def test_without_a_user_manager_systemctl_edits_the_links_itself(tmp_path):
    manager, recording = systemd(tmp_path, RUNNING)
    manager.enable(None, changed=True, start=False)
    manager.disable(None)
    manager.after_removal(None)
    offline = ("env", "SYSTEMD_OFFLINE=1", "systemctl", "--user")
    assert recording.done == [(*offline, "enable", UNIT), (*offline, "disable", UNIT)]


def test_systemd_forgets_an_uninstalled_service(tmp_path):
    manager, recording = systemd(tmp_path, RUNNING)
    manager.disable(state())
    manager.after_removal(state())
    steps = [("disable", "--now", UNIT), ("daemon-reload",), ("reset-failed", UNIT, "?")]
    assert recording.done == [("systemctl", "--user", *step) for step in steps]


def test_start_stop_restart_and_logs_use_systemd_commands(tmp_path):
    manager, recording = systemd(tmp_path, RUNNING)
    manager.start()
    manager.stop()
    manager.restart()
    manager.enable_linger()
    assert recording.done == [
        ("systemctl", "--user", "start", UNIT),
        ("systemctl", "--user", "stop", UNIT),
        ("systemctl", "--user", "restart", UNIT),
        ("loginctl", "enable-linger"),
    ]
    for follow, file in ((False, None), (True, None), (True, Path("/l"))):
        with pytest.raises(SystemExit):
            manager.show_log(7, follow=follow, file=file)
    journal = ("journalctl", f"--user-unit={UNIT}", "--lines=7", "--no-pager")
    assert recording.replaced_by == [journal, (*journal, "--follow"), ("tail", "-n", "7", "-F", "/l")]


def test_xdg_config_home_is_used_if_absolute(tmp_path):
    for value, root in ((str(tmp_path / "x"), tmp_path / "x"), ("relative", tmp_path / ".config")):
        manager = Systemd(tmp_path, RecordingRunner(XDG_CONFIG_HOME=value))
        assert manager.file == root / "systemd" / "user" / UNIT


def launchd(tmp_path: Path, printed: CommandResult, *, dry: bool = False) -> tuple[Launchd, RecordingRunner]:
    answers = {
        "ps": CommandResult(0, "Sat Nov 21 18:36:15 2026", ""),
        TARGET: printed,
        f"gui/{ME}": CommandResult(0, "", ""),
    }
    recording = RecordingRunner(answers, dry=dry)
    return Launchd(tmp_path, recording), recording


def test_the_output_of_launchd_is_parsed(tmp_path):
    manager, recording = launchd(tmp_path, CommandResult(0, PRINTED, ""))
    manager.file.parent.mkdir(parents=True)
    manager.file.touch()
    found = manager.state()
    assert (found.enabled, found.loaded, found.running, found.pid, found.last_exit) == (True, True, True, 4711, "")
    assert (found.text, found.since) == ("running", datetime(2026, 11, 21, 18, 36, 15, tzinfo=UTC))
    recording.answers["print-disabled"] = CommandResult(
        0, 'disabled services = {\n\t"org.akosha.agent" => disabled\n}', ""
    )
    assert not manager.state().enabled
    stopped = PRINTED.replace("\tpid = 4711\n", "").replace("(never exited)", "2").replace("running", "not running")
    manager, _ = launchd(tmp_path, CommandResult(0, stopped, ""))
    assert (manager.state().running, manager.state().last_exit, manager.state().text) == (False, "2", "not running")


def test_a_launchd_without_the_users_session_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(AkoshaError, match=f"no gui/{ME}") as raised:
        Launchd(tmp_path, RecordingRunner()).state()
    assert "log in" in raised.value.hint


LAUNCHD_STEPS = [
    pytest.param(state(enabled=False, loaded=False, running=False), True, ["enable", "bootstrap"], id="new"),
    pytest.param(state(), False, [], id="again"),
    pytest.param(state(), True, ["bootout", "bootstrap"], id="upgrade"),
    pytest.param(state(running=False), False, ["kickstart"], id="stopped"),
]


@pytest.mark.parametrize(("before", "changed", "steps"), LAUNCHD_STEPS)
def test_launchd_runs_only_the_necessary_commands(tmp_path, before, changed, steps):
    manager, recording = launchd(tmp_path, NO_SUCH)
    manager.enable(before, changed=changed, start=True)
    words = {
        "enable": ("enable", TARGET),
        "bootstrap": ("bootstrap", f"gui/{ME}", str(manager.file)),
        "bootout": ("bootout", TARGET),
        "kickstart": ("kickstart", TARGET),
    }
    assert recording.done == [("launchctl", *words[step]) for step in steps]


def test_without_a_start_no_launchd_command_is_run(tmp_path):
    manager, recording = launchd(tmp_path, NO_SUCH)
    manager.enable(state(), changed=True, start=False)
    manager.enable(None, changed=True, start=False)
    manager.disable(state(loaded=False))
    assert recording.done == []


def test_stop_restart_and_logs_use_launchd_commands(tmp_path):
    manager, recording = launchd(tmp_path, NO_SUCH)
    manager.disable(state())
    manager.stop()
    manager.restart()
    assert recording.done == [
        ("launchctl", "bootout", TARGET),
        ("launchctl", "enable", TARGET),
        ("launchctl", "bootstrap", f"gui/{ME}", str(manager.file)),
    ]
    manager, recording = launchd(tmp_path, CommandResult(0, PRINTED, ""), dry=True)
    manager.stop()
    manager.restart()
    assert recording.done == [("launchctl", "kill", "SIGTERM", TARGET), ("launchctl", "kickstart", "-k", TARGET)]
    with pytest.raises(SystemExit):
        manager.show_log(5, follow=True, file=None)
    assert recording.replaced_by == [("tail", "-n", "5", "-F", str(tmp_path / "Library" / "Logs" / "akosha-agent.log"))]


def test_a_platform_without_a_service_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(AkoshaError, match="freebsd14") as raised:
        service_manager(tmp_path, RecordingRunner(), "freebsd14")
    assert "docs/guides/service.md" in raised.value.hint


def test_a_service_status_without_a_manager_does_not_raise(tmp_path):
    status = service_status(tmp_path, {"PATH": str(tmp_path)})
    assert (status.installed, status.enabled, status.running, status.outdated) == (False, False, False, False)
    assert status.detail


@pytest.mark.parametrize(
    ("words", "version", "outdated", "detail"),
    [
        pytest.param("/bin/sh", "", False, "active", id="current"),
        pytest.param("/bin/sh", "Nice=10", True, "another version", id="older-template"),
        pytest.param("/nowhere/akosha-agent", "", True, "does not exist: /nowhere/akosha-agent", id="program-missing"),
    ],
)
def test_a_file_of_an_older_version_or_with_a_missing_program_is_outdated(
    tmp_path, monkeypatch, words, version, outdated, detail
):
    manager, _ = systemd(tmp_path, RUNNING)
    text = manager.render(ServiceSpec((words, "run")))
    service_file.write(manager.file, text, 0o644)
    if version:
        from agent.entrypoints.service import systemd as module

        newer = module.template("systemd/akosha-agent.service").replace(version, "Nice=11")
        monkeypatch.setattr(module, "template", lambda _: newer)
    status = status_of(manager)
    assert (status.outdated, status.edited) == (outdated, False)
    assert detail in status.detail


def test_an_edited_file_is_reported(tmp_path):
    manager, _ = systemd(tmp_path, RUNNING)
    service_file.write(
        manager.file, manager.render(ServiceSpec(("/bin/sh", "run"))).replace("Nice=10", "Nice=1"), 0o644
    )
    status = status_of(manager)
    assert (status.edited, status.outdated, status.installed) == (True, False, True)
