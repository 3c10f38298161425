"""What is asked of systemd and launchd, word by word."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.domain.errors import AkoshaError
from agent.entrypoints.service import sealed_file
from agent.entrypoints.service.launchd import Launchd
from agent.entrypoints.service.manager import Course, InstallOrder
from agent.entrypoints.service.runner import Ran, Runner
from agent.entrypoints.service.status import keeper_of, look, standing_of
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
WRONG = """LoadState=loaded
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
NO_SUCH = Ran(113, "", "Could not find service")


class Recording(Runner):
    """Answers questions from a table, by their second word or their first; keeps what was to be done."""

    def __init__(self, answers: Mapping[str, Ran] = {}, *, dry: bool = False, **environ: str) -> None:
        super().__init__(environ, dry=dry, say=lambda _: None)
        self.answers, self.asked, self.done, self.became = dict(answers), [], [], []

    def ask(self, *words):
        self.asked.append(words)
        keys = [word for word in words if word in self.answers]
        return self.answers[keys[0]] if keys else Ran(1, "", "nobody answers")

    def do(self, *words, forgiving=False):
        self.done.append((*words, "?") if forgiving else words)

    def become(self, *words):
        self.became.append(words)
        raise SystemExit


def systemd(tmp_path: Path, show: str | None, linger: str = "no") -> tuple[Systemd, Recording]:
    answers = {"loginctl": Ran(0, linger, "")} | ({} if show is None else {"systemctl": Ran(0, show, "")})
    recording = Recording(answers)
    return Systemd(tmp_path, recording), recording


def course(**values: object) -> Course:
    return Course(**{"enabled": True, "loaded": True, "running": True} | values)


def test_systemd_is_asked_in_one_question_and_its_answer_understood(tmp_path):
    keeper, recording = systemd(tmp_path, RUNNING, "yes")
    found = keeper.course()
    assert (found.enabled, found.loaded, found.running, found.pid, found.last_exit) == (True, True, True, 4711, "")
    assert found.since == datetime(2026, 11, 21, 18, 36, 15, tzinfo=UTC)
    assert found.text == "active (running) restarted 2 times says: nothing pending"
    assert found.remark.startswith("yes")
    assert [words[:4] for words in recording.asked] == [
        ("systemctl", "--user", "show", UNIT),
        ("loginctl", "show-user", str(os.geteuid()), "--property=Linger"),
    ]


def test_a_wrong_setting_is_told_from_other_ends(tmp_path):
    keeper, _ = systemd(tmp_path, WRONG)
    sealed_file.place(keeper.file, keeper.render(InstallOrder(("/bin/sh", "run"))), 0o644)
    standing = standing_of(keeper)
    assert (standing.installed, standing.running, standing.last_exit) == (True, False, "2")
    assert "a setting is wrong" in standing.detail
    died = WRONG.replace(
        "ExecMainCode=1\nExecMainStatus=2\nResult=exit-code", "ExecMainCode=2\nExecMainStatus=6\nResult=watchdog"
    )
    assert systemd(tmp_path, died)[0].course().last_exit == "signal 6, watchdog"


def test_a_systemd_that_cannot_be_reached_is_named_with_the_cure(tmp_path):
    keeper, _ = systemd(tmp_path, None)
    with pytest.raises(AkoshaError, match="nobody answers") as told:
        keeper.course()
    for cure in ("machinectl shell", "ssh", "enable-linger", "akosha-agent run"):
        assert cure in told.value.hint


SYSTEMD_STEPS = [
    pytest.param(
        course(enabled=False, loaded=False, running=False),
        {"changed": True, "start": True},
        [("daemon-reload",), ("enable", UNIT), ("start", UNIT)],
        id="new",
    ),
    pytest.param(course(), {"changed": False, "start": True}, [], id="again"),
    pytest.param(course(), {"changed": True, "start": True}, [("daemon-reload",), ("restart", UNIT)], id="upgrade"),
    pytest.param(course(), {"changed": True, "start": False}, [("daemon-reload",)], id="upgrade-no-start"),
    pytest.param(
        course(running=False, text="failed (failed)"),
        {"changed": False, "start": True},
        [("reset-failed", UNIT, "?"), ("start", UNIT)],
        id="failed",
    ),
    pytest.param(None, {"changed": True, "start": False}, [("enable", UNIT)], id="unreachable"),
]


@pytest.mark.parametrize(("before", "how", "steps"), SYSTEMD_STEPS)
def test_systemd_is_told_what_is_new_and_no_more(tmp_path, before, how, steps):
    keeper, recording = systemd(tmp_path, RUNNING)
    keeper.take_up(before, **how)
    assert recording.done == [("systemctl", "--user", *step) for step in steps]


def test_systemd_forgets_an_uninstalled_service(tmp_path):
    keeper, recording = systemd(tmp_path, RUNNING)
    keeper.let_go(course())
    keeper.let_gone(course())
    steps = [("disable", "--now", UNIT), ("daemon-reload",), ("reset-failed", UNIT, "?")]
    assert recording.done == [("systemctl", "--user", *step) for step in steps]


def test_systemds_other_commands(tmp_path):
    keeper, recording = systemd(tmp_path, RUNNING)
    keeper.start()
    keeper.stop()
    keeper.restart()
    keeper.linger()
    assert recording.done == [
        ("systemctl", "--user", "start", UNIT),
        ("systemctl", "--user", "stop", UNIT),
        ("systemctl", "--user", "restart", UNIT),
        ("loginctl", "enable-linger"),
    ]
    for follow, file in ((False, None), (True, None), (True, Path("/l"))):
        with pytest.raises(SystemExit):
            keeper.show_log(7, follow=follow, file=file)
    journal = ("journalctl", f"--user-unit={UNIT}", "--lines=7", "--no-pager")
    assert recording.became == [journal, (*journal, "--follow"), ("tail", "-n", "7", "-F", "/l")]


def test_xdg_config_home_is_honoured_where_it_is_absolute(tmp_path):
    for value, root in ((str(tmp_path / "x"), tmp_path / "x"), ("relative", tmp_path / ".config")):
        keeper = Systemd(tmp_path, Recording(XDG_CONFIG_HOME=value))
        assert keeper.file == root / "systemd" / "user" / UNIT


def launchd(tmp_path: Path, printed: Ran, *, dry: bool = False) -> tuple[Launchd, Recording]:
    answers = {"ps": Ran(0, "Sat Nov 21 18:36:15 2026", ""), TARGET: printed, f"gui/{ME}": Ran(0, "", "")}
    recording = Recording(answers, dry=dry)
    return Launchd(tmp_path, recording), recording


def test_launchds_answer_is_understood(tmp_path):
    keeper, recording = launchd(tmp_path, Ran(0, PRINTED, ""))
    keeper.file.parent.mkdir(parents=True)
    keeper.file.touch()
    found = keeper.course()
    assert (found.enabled, found.loaded, found.running, found.pid, found.last_exit) == (True, True, True, 4711, "")
    assert (found.text, found.since) == ("running", datetime(2026, 11, 21, 18, 36, 15, tzinfo=UTC))
    recording.answers["print-disabled"] = Ran(0, 'disabled services = {\n\t"org.akosha.agent" => disabled\n}', "")
    assert not keeper.course().enabled
    stopped = PRINTED.replace("\tpid = 4711\n", "").replace("(never exited)", "2").replace("running", "not running")
    keeper, _ = launchd(tmp_path, Ran(0, stopped, ""))
    assert (keeper.course().running, keeper.course().last_exit, keeper.course().text) == (False, "2", "not running")


def test_a_launchd_without_the_users_session_is_named_with_the_cure(tmp_path):
    with pytest.raises(AkoshaError, match=f"no gui/{ME}") as told:
        Launchd(tmp_path, Recording()).course()
    assert "log in" in told.value.hint


LAUNCHD_STEPS = [
    pytest.param(course(enabled=False, loaded=False, running=False), True, ["enable", "bootstrap"], id="new"),
    pytest.param(course(), False, [], id="again"),
    pytest.param(course(), True, ["bootout", "bootstrap"], id="upgrade"),
    pytest.param(course(running=False), False, ["kickstart"], id="stopped"),
]


@pytest.mark.parametrize(("before", "changed", "steps"), LAUNCHD_STEPS)
def test_launchd_is_told_what_is_new_and_no_more(tmp_path, before, changed, steps):
    keeper, recording = launchd(tmp_path, NO_SUCH)
    keeper.take_up(before, changed=changed, start=True)
    words = {
        "enable": ("enable", TARGET),
        "bootstrap": ("bootstrap", f"gui/{ME}", str(keeper.file)),
        "bootout": ("bootout", TARGET),
        "kickstart": ("kickstart", TARGET),
    }
    assert recording.done == [("launchctl", *words[step]) for step in steps]


def test_launchd_is_left_alone_where_nothing_is_to_start(tmp_path):
    keeper, recording = launchd(tmp_path, NO_SUCH)
    keeper.take_up(course(), changed=True, start=False)
    keeper.take_up(None, changed=True, start=False)
    keeper.let_go(course(loaded=False))
    assert recording.done == []


def test_launchds_other_commands(tmp_path):
    keeper, recording = launchd(tmp_path, NO_SUCH)
    keeper.let_go(course())
    keeper.stop()
    keeper.restart()
    assert recording.done == [
        ("launchctl", "bootout", TARGET),
        ("launchctl", "enable", TARGET),
        ("launchctl", "bootstrap", f"gui/{ME}", str(keeper.file)),
    ]
    keeper, recording = launchd(tmp_path, Ran(0, PRINTED, ""), dry=True)
    keeper.stop()
    keeper.restart()
    assert recording.done == [("launchctl", "kill", "SIGTERM", TARGET), ("launchctl", "kickstart", "-k", TARGET)]
    with pytest.raises(SystemExit):
        keeper.show_log(5, follow=True, file=None)
    assert recording.became == [("tail", "-n", "5", "-F", str(tmp_path / "Library" / "Logs" / "akosha-agent.log"))]


def test_a_platform_without_a_service_is_told_where_to_read(tmp_path):
    with pytest.raises(AkoshaError, match="freebsd14") as told:
        keeper_of(tmp_path, Recording(), "freebsd14")
    assert "deploy/README.md" in told.value.hint


def test_looking_never_raises(tmp_path):
    standing = look(tmp_path, {"PATH": str(tmp_path)})
    assert (standing.installed, standing.enabled, standing.running, standing.outdated) == (False, False, False, False)
    assert standing.detail


@pytest.mark.parametrize(
    ("words", "version", "outdated", "detail"),
    [
        pytest.param("/bin/sh", "", False, "active", id="current"),
        pytest.param("/bin/sh", "Nice=10", True, "another version", id="older-template"),
        pytest.param("/nowhere/akosha-agent", "", True, "is gone: /nowhere/akosha-agent", id="program-gone"),
    ],
)
def test_what_an_upgrade_left_behind_is_outdated(tmp_path, monkeypatch, words, version, outdated, detail):
    keeper, _ = systemd(tmp_path, RUNNING)
    text = keeper.render(InstallOrder((words, "run")))
    sealed_file.place(keeper.file, text, 0o644)
    if version:
        from agent.entrypoints.service import systemd as room

        newer = room.template("systemd/akosha-agent.service").replace(version, "Nice=11")
        monkeypatch.setattr(room, "template", lambda _: newer)
    standing = standing_of(keeper)
    assert (standing.outdated, standing.edited) == (outdated, False)
    assert detail in standing.detail


def test_a_file_that_was_edited_is_said_to_be(tmp_path):
    keeper, _ = systemd(tmp_path, RUNNING)
    sealed_file.place(keeper.file, keeper.render(InstallOrder(("/bin/sh", "run"))).replace("Nice=10", "Nice=1"), 0o644)
    standing = standing_of(keeper)
    assert (standing.edited, standing.outdated, standing.installed) == (True, False, True)
