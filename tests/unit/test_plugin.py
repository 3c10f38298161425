"""Claude Code's plugin: its files, the program that it starts, and that the agent recognises it."""

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from agent import __version__
from agent.entrypoints.hook import note
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.hook.install import install
from agent.entrypoints.hook.plugin import BESIDES_PATH, NAME, enabled_plugin
from agent.entrypoints.hook.status import HookStatus, State, hook_status, installed_hook
from agent.entrypoints.installation import INSTALL
from agent.entrypoints.mcp.tools import TOOL_NAMES
from agent.entrypoints.status_verdict import Severity
from agent.settings import loading
from agent.settings.own_files import config_file
from tests.support.plugin import PLUGIN, ROOT, document, hook_words, server_words

SCHEMAS = document(ROOT / "tests" / "support" / "data" / "claude_code" / "schemas.json")
SKILL = (PLUGIN / "skills" / "akosha-memory" / "SKILL.md").read_text(encoding="utf-8")
MARKETPLACE = document(ROOT / ".claude-plugin" / "marketplace.json")
MANIFEST = document(PLUGIN / ".claude-plugin" / "plugin.json")
ID = f"{MANIFEST['name']}@{MARKETPLACE['name']}"
API_TOOL_NAME_CHARACTERS = 64


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ("marketplace", MARKETPLACE),
        ("plugin", MANIFEST),
        ("hooks", document(PLUGIN / "hooks" / "hooks.json")),
        ("mcp", document(PLUGIN / ".mcp.json")),
        ("skill", yaml.safe_load(SKILL.split("---\n")[1])),
    ],
    ids=["marketplace", "plugin", "hooks", "mcp", "skill"],
)
def test_each_file_has_the_documented_fields(schema, found):
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{schema}", "$defs": SCHEMAS["$defs"]}).validate(found)


def test_the_marketplace_has_the_plugin_with_the_version_of_the_package():
    (entry,) = MARKETPLACE["plugins"]
    assert (ROOT / entry["source"]).resolve() == PLUGIN
    assert entry["name"] == MANIFEST["name"] == NAME
    assert MANIFEST["version"] == __version__


def test_no_file_of_the_plugin_is_outside_of_a_documented_location():
    names = {path.relative_to(PLUGIN).as_posix() for path in PLUGIN.rglob("*") if path.is_file()}
    documented = {".claude-plugin/plugin.json", "hooks/hooks.json", ".mcp.json", "skills/akosha-memory/SKILL.md"}
    assert names == documented | {"scripts/start.sh"}


def test_the_skill_explains_each_severity_and_names_the_tools():
    assert [severity for severity in Severity if f"| `{severity}` | " not in SKILL] == []
    assert [tool for tool in TOOL_NAMES if f"`{tool}`" not in SKILL] == []
    (server,) = document(PLUGIN / ".mcp.json")["mcpServers"]
    names = [f"mcp__plugin_{NAME}_{server}__{tool}" for tool in TOOL_NAMES]
    assert max(map(len, names)) <= API_TOOL_NAME_CHARACTERS


# ------------------------------------------------------------------------------------------------ the program it starts


def place(program: Path, text: str) -> None:
    """Write a program that prints `text` and its arguments."""
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho {text} "$@" "${{PYTHONPATH-}}"\n')
    program.chmod(0o755)


def start(words: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": "a project"} | variables
    return subprocess.run(words, env=environ, cwd=home, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [hook_words(), server_words()], ids=["hook", "server"])
def test_without_the_program_the_plugin_says_how_to_install_it(tmp_path, words):
    done = start(words, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("akosha-agent is not installed: ")
    assert done.stderr.endswith(f"{INSTALL}\n")
    assert [name for name in BESIDES_PATH if f"~/{name}" not in done.stderr] == []


def test_the_plugin_starts_the_program_of_path_or_of_an_installation_in_the_home_directory(tmp_path):
    home, first = tmp_path / "my home", tmp_path / "first * of PATH"
    places = [first, *(home / name for name in BESIDES_PATH)]
    search_path = f"bin:.:{tmp_path / 'nowhere'}:{first}:/usr/bin:/bin"
    for directory in places:
        place(directory / "akosha-agent", f"'{directory.name}'")
    place(home / "bin" / "akosha-agent", "the program of a project, in a relative directory of PATH")
    for directory in places:
        done = start(hook_words(), home, PATH=search_path)
        assert done.stdout == f"{directory.name} hook session-end \n", done.stderr
        assert start(server_words(), home, PATH=search_path).stdout == f"{directory.name} mcp \n"
        plugin = enabled_plugin({"enabledPlugins": {ID: True}}, {"HOME": str(home), "PATH": search_path}, home)
        assert plugin.program == directory / "akosha-agent", "the same program as the plugin's"
        (directory / "akosha-agent").chmod(0o644)


# ------------------------------------------------------------------------------------------------ recognised


@pytest.fixture
def home(tmp_path):
    """A home with the program where a documented installation puts it."""
    place(tmp_path / ".local" / "bin" / "akosha-agent", "here")
    return tmp_path


def status(home: Path, settings: object, state: Path | None = None) -> HookStatus:
    path = home / "settings.json"
    path.write_text(json.dumps(settings))
    environ = {"HOME": str(home), "PATH": "/usr/bin"}
    state = state or Path(note.state_directory("", environ))
    wanted = HookCommand(("/akosha-agent",), {"--state-dir": str(state)})
    return hook_status(installed_hook(path, environ, home), wanted)


def test_the_hook_of_an_enabled_plugin_counts_as_installed(home):
    found = status(home, {"enabledPlugins": {"other@akosha": True, ID: True}})
    assert (found.state, found.reason, found.hint) == (State.INSTALLED, f"by the plugin {ID}", "")
    assert found.document()["plugin"] == ID
    for enabled in ({ID: False}, {"other@akosha": True}, {}, [], None):
        assert status(home, {"enabledPlugins": enabled}).state is State.ABSENT


def test_a_hook_besides_the_plugin_is_reported_as_harmless(home):
    path = home / "settings.json"
    path.write_text(json.dumps({"enabledPlugins": {ID: True}}))
    install(path, HookCommand(("/gone/akosha-agent",), {"--state-dir": "/elsewhere"}), home)
    found = status(home, json.loads(path.read_text()))
    assert found.state is State.INSTALLED
    assert "reported twice, which is harmless" in found.reason
    assert found.hint == "akosha-agent hook uninstall"


@pytest.mark.parametrize(
    ("settings", "reason", "hint"),
    [
        ({"disableAllHooks": True}, "disableAllHooks is true", "remove it from"),
        ({"state": "/new"}, "but the agent reads /new", "akosha-agent config set agent_state_dir /new"),
        ({"program": False}, f"the plugin {ID} does not find akosha-agent on PATH or in ~/.local/bin", INSTALL),
    ],
    ids=["hooks are disabled", "another state directory", "no program"],
)
def test_a_plugin_whose_hook_does_not_reach_the_agent_is_broken(home, settings, reason, hint):
    if not settings.get("program", True):
        (home / ".local" / "bin" / "akosha-agent").unlink()
    state = Path(settings["state"]) if "state" in settings else None
    found = status(home, {"enabledPlugins": {ID: True}} | settings, state)
    assert found.state is State.BROKEN
    assert reason in found.reason
    assert found.hint.startswith(hint)


# ----------------------------------------------------------------------------------------------- without options


def test_the_hook_knows_the_settings_files_of_the_user(tmp_path):
    assert note.SESSION_BUDDY_FILES == loading._USER_FILES
    for environ in ({"HOME": str(tmp_path)}, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "elsewhere")}):
        file = config_file(environ, tmp_path).path
        file.parent.mkdir(parents=True)
        file.write_text("agent_state_dir: ~/the state\nsystem_id: my mac\n")
        assert note.settings_have_options(environ)
        found = note.options_of_settings(environ)
        assert found == {"--state-dir": str(tmp_path / "the state"), "--system-id": "my-mac"}


@pytest.mark.parametrize("name", note.SESSION_BUDDY_FILES)
def test_without_options_the_hook_uses_those_of_the_settings(tmp_path, name):
    environ, file = {"HOME": str(tmp_path)}, tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text("akosha_cloud_bucket: bucket\n")
    assert not note.settings_have_options(environ)
    file.write_text(f"akosha_agent_state_dir: {tmp_path}/there\n")
    assert note.settings_have_options(environ)
    assert note.options_of_settings(environ) == {"--state-dir": f"{tmp_path}/there"}
    os.mkfifo(tmp_path / "pipe")
    file.unlink()
    file.symlink_to(tmp_path / "pipe")
    assert not note.settings_have_options(environ), "a named pipe does not block the hook"
