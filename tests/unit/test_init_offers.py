"""What `init` offers to install besides the settings, and what it installs without a question."""

from pathlib import Path

import pytest

from agent.entrypoints.init import integrations
from agent.entrypoints.init.integrations import Wishes, wanted_installations
from agent.entrypoints.service import commands as service_commands
from agent.entrypoints.service.status import ServiceStatus
from agent.settings import Settings

SERVICE, HOOK, MCP = "Run the agent as a service", "Install the hook", "Add the agent's MCP server"


def status(**changes) -> ServiceStatus:
    plain = {"installed": False, "enabled": False, "running": False, "outdated": False, "path": Path("/unit")}
    return ServiceStatus(**plain | {"detail": "", "manager": "systemd"} | changes)


@pytest.fixture
def offers(monkeypatch, tmp_path):
    """Return a function that returns the questions, all answered with yes, and the number of installations."""

    def ask(
        found: ServiceStatus,
        *,
        claude: str | None = None,
        changed: bool = False,
        why_not: str = "",
        **flags: bool | None,
    ):
        asked = []
        monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path))
        monkeypatch.setattr(integrations, "service_status", lambda *_: found)
        monkeypatch.setattr(integrations, "_claude_path", lambda: claude)
        monkeypatch.setattr(integrations, "_why_not_permanent", lambda: why_not)
        monkeypatch.setattr(integrations, "_lacks_mcp", lambda: True)
        monkeypatch.setattr(integrations, "confirm", lambda text, **_: bool(asked.append(text)) or True)
        wishes = Wishes(**{"service": None, "hook": None, "mcp": None, "ask": True} | flags)
        wanted = wanted_installations(Settings(), changed=changed, flags=wishes)
        return asked, wanted

    return ask


@pytest.mark.parametrize(
    ("service", "claude", "questions"),
    [
        (status(), "/bin/claude", [SERVICE, HOOK, MCP]),
        (status(), None, [SERVICE, HOOK]),
        (status(reachable=False), None, [HOOK]),
        (status(manager="", path=None), None, [HOOK]),
        (status(installed=True), None, [HOOK]),
    ],
    ids=["everything", "without Claude Code", "unreachable systemd", "other platform", "installed"],
)
def test_only_what_is_possible_and_missing_is_offered(offers, service, claude, questions):
    asked, wanted = offers(service, claude=claude)
    assert len(wanted) == len(asked) == len(questions)
    assert all(text.startswith(question) for text, question in zip(asked, questions, strict=True))


def test_flags_answer_the_questions_and_without_a_dialogue_nothing_else_is_installed(offers):
    assert offers(status(), claude="/bin/claude", service=False, hook=False, mcp=False) == ([], [])
    assert offers(status(), claude="/bin/claude", ask=False) == ([], [])
    asked, wanted = offers(status(), service=True, hook=True, mcp=True, ask=False)
    assert (asked, len(wanted)) == ([], 3)


def test_what_the_plugin_of_claude_code_has_is_neither_offered_nor_installed(offers, tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"enabledPlugins": {"akosha-agent@akosha": true}}')
    (question,) = offers(status(), claude="/bin/claude")[0]
    assert question.startswith(SERVICE)
    _, (add_server,) = offers(status(installed=True), claude="/bin/claude", mcp=True)
    add_server()
    assert "the MCP server is not added: the plugin akosha-agent@akosha" in capsys.readouterr().out


def test_nothing_is_offered_by_an_installation_that_is_soon_deleted(offers, capsys):
    assert offers(status(), claude="/bin/claude", why_not="/tmp/x is in a directory for temporary files") == ([], [])
    assert "service, hook and MCP server are not offered: /tmp/x is in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claude", "reason"),
    [("#!/no/such/program\n", "No such file"), ("#!/bin/sh\nexec sleep 60\n", "did not end within 0.2 s")],
    ids=["broken", "hangs"],
)
def test_a_claude_code_that_does_not_work_is_reported_and_costs_nothing_else(
    monkeypatch, tmp_path, capsys, claude, reason
):
    program = tmp_path / "claude"
    program.write_text(claude)
    program.chmod(0o755)
    monkeypatch.setattr(integrations, "_claude_path", lambda: str(program))
    monkeypatch.setattr(integrations, "MCP_GET_SECONDS", 0.2)
    monkeypatch.setattr(integrations, "service_status", lambda *_: status(installed=True))
    wishes = Wishes(service=None, hook=False, mcp=None, ask=True)
    assert wanted_installations(Settings(), changed=True, flags=wishes) == []
    error = capsys.readouterr().err
    assert "Claude Code cannot be run" in error
    assert reason in error


def test_a_running_service_is_restarted_if_settings_have_changed(offers):
    running = status(installed=True, running=True)
    assert offers(running, changed=True, ask=False) == ([], [service_commands.restart])
    assert offers(running, changed=False, ask=False) == ([], [])
