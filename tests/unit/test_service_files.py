"""The service files: quoting, reading back, digests, environment, and the program that they start."""

import plistlib
import tempfile
from pathlib import Path

import pytest

from agent.domain.errors import AkoshaError
from agent.entrypoints.hook import commands as hook_commands, hook_command
from agent.entrypoints.service import program as programs, service_file
from agent.entrypoints.service.environment import (
    ENVIRONMENT_TEMPLATE,
    is_open_to_others,
    missing_variables,
    read_environment,
)
from agent.entrypoints.service.launchd import Launchd
from agent.entrypoints.service.manager import Runner, ServiceSpec
from agent.entrypoints.service.service_file import FileState
from agent.entrypoints.service.systemd import Systemd
from agent.entrypoints.stored_settings import not_stored, service_like
from agent.settings import Settings

HOME = Path("/home/jo")
LAUNCHD_KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "WorkingDirectory": str,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "LowPriorityIO": bool,
    "Nice": int,
    "Umask": int,
    "SoftResourceLimits": dict,
    "StandardOutPath": str,
    "StandardErrorPath": str,
}
"""Keys of launchd.plist(5) and their types. launchd silently ignores unknown keys."""


def runner(**environ: str) -> Runner:
    return Runner(environ, say=lambda _: None)


def systemd() -> Systemd:
    return Systemd(HOME, runner())


def launchd() -> Launchd:
    return Launchd(HOME, runner())


WORDS = [
    pytest.param(("/home/jo/.local/bin/akosha-agent", "run"), id="plain"),
    pytest.param(("/usr/bin/python3", "-m", "agent", "run", "--state-dir", "/mnt/a b"), id="space"),
    pytest.param(("/opt/50%/$HOME/akosha-agent", "run", "--data-dir", "/d/100% of $HOME ${X} %h"), id="expansions"),
    pytest.param(("/bin/a", "run", "--settings", '/s/"q"\\t\'s;#é&<>'), id="quotes"),
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("manager", [systemd(), launchd()], ids=["systemd", "launchd"])
def test_the_command_can_be_read_back_from_the_file(manager, words, tmp_path):
    path = tmp_path / "file"
    service_file.write(path, manager.render(ServiceSpec(words)), 0o600)
    state, text = service_file.read(path)
    assert state is FileState.UNCHANGED
    assert manager.parse(text).words == words
    assert manager.render(manager.parse(text)) == text


def test_words_are_quoted_as_systemd_reads_them():
    text = systemd().render(ServiceSpec(("/opt/a b%c/akosha-agent", "run", "--data-dir", '/x/$y %z "q" \\n')))
    assert 'ExecStart="/opt/a b%%c/akosha-agent" run --data-dir "/x/$$y %%z \\"q\\" \\\\n"\n' in text


@pytest.mark.parametrize("word", ['/a"b', "/a'b", "/a\\b", "/a\nb"])
def test_a_program_path_with_quotes_is_refused_for_systemd(word):
    with pytest.raises(AkoshaError, match="cannot contain"):
        systemd().render(ServiceSpec((word, "run")))


@pytest.mark.parametrize("added", [b"", b"\n", b"# \n", b"ExecStartPre=/bin/true\n"])
def test_any_edit_of_the_file_is_detected(added, tmp_path):
    path = tmp_path / "unit"
    text = systemd().render(ServiceSpec(("/bin/a", "run"))).encode()
    path.write_bytes(text + added)
    assert service_file.read(path)[0] is (FileState.EDITED if added else FileState.UNCHANGED)
    path.write_bytes(text.replace(b"Nice=10", b"Nice=1"))
    assert service_file.read(path)[0] is FileState.EDITED


def test_a_file_without_the_digest_counts_as_edited(tmp_path):
    path = tmp_path / "unit"
    assert service_file.read(path)[0] is FileState.ABSENT
    for content in (b"", b"[Service]\n", b"\xff\xfe"):
        path.write_bytes(content)
        assert service_file.read(path)[0] is FileState.EDITED


def test_setting_aside_a_file_keeps_earlier_backups(tmp_path):
    path = tmp_path / "unit"
    for number in range(3):
        path.write_text(str(number))
        service_file.set_aside(path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"unit.bak": "0", "unit.bak2": "1", "unit.bak3": "2"}


def test_the_launchd_agent_has_documented_keys_of_the_right_types():
    text = launchd().render(ServiceSpec(("/opt/tools/akosha-agent", "run")))
    document = plistlib.loads(text.encode())
    assert {key: type(value) for key, value in document.items()} == {key: LAUNCHD_KEYS[key] for key in document}
    assert document["ProgramArguments"] == ["/opt/tools/akosha-agent", "run"]
    assert document["KeepAlive"] == {"SuccessfulExit": False}
    assert document["ProcessType"] == "Background"
    assert document["LowPriorityIO"] is True
    assert document["Umask"] == 0o077
    assert document["ExitTimeOut"] > 10
    assert document["StandardErrorPath"] == "/home/jo/Library/Logs/akosha-agent.log"
    assert document["EnvironmentVariables"] == {
        "PATH": "/opt/tools:/home/jo/.local/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    }
    assert "USER" not in text


@pytest.mark.parametrize("name", ["org.akosha.agent", "org.akosha.agent-react"])
def test_the_launchd_templates_have_documented_keys_of_the_right_types(name):
    file = Path(__file__).parents[2] / "deploy" / "launchd" / f"{name}.plist"
    document = plistlib.loads(file.read_bytes())
    assert document["Label"] == name
    assert {key: type(value) for key, value in document.items()} == {key: LAUNCHD_KEYS[key] for key in document}


def test_credentials_in_the_launchd_agent_are_private_and_never_printed():
    manager, spec = launchd(), ServiceSpec(("/bin/a", "run"), {"AWS_SECRET_ACCESS_KEY": "canary-1"})
    text = manager.render(spec)
    assert plistlib.loads(text.encode())["EnvironmentVariables"]["AWS_SECRET_ACCESS_KEY"] == "canary-1"
    assert manager.file_mode(spec) == 0o600
    assert "canary-1" not in manager.redacted(text)
    assert "AWS_SECRET_ACCESS_KEY" in manager.redacted(text)


def test_the_environment_file_is_read_as_systemd_reads_it(tmp_path):
    path = tmp_path / "environment"
    path.write_text("# A=1\n; B=2\n\n C = 3 4 \nD=\"5 6\"\nE='7'\nnothing\n9=8\nF=a=b\nG=one\\\ntwo\nH=\n")
    assert read_environment(path) == {"C": "3 4", "D": "5 6", "E": "7", "F": "a=b", "G": "onetwo", "H": ""}
    path.write_text(ENVIRONMENT_TEMPLATE)
    assert read_environment(path) == {}
    assert read_environment(tmp_path / "none") == {}


def test_variables_set_only_in_this_shell_are_named():
    environ = {"AWS_PROFILE": "x", "AKOSHA_CLOUD_BUCKET": "b", "https_proxy": "p", "HOME": "h", "SESSION_BUDDY_X": "y"}
    assert missing_variables(environ, {"AKOSHA_CLOUD_BUCKET"}) == ["AWS_PROFILE", "https_proxy"]
    environ = {"SESSION_BUDDY_DATA_DIR": "/x", "SESSION_BUDDY_LOG_LEVEL": "DEBUG"}
    assert missing_variables(environ, ()) == sorted(environ)
    assert service_like(environ | {"AWS_PROFILE": "x", "HOME": "h"}) == {"HOME": "h"}


@pytest.mark.parametrize(
    ("settings", "has_keys", "names"),
    [
        ({}, False, ["AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "HTTPS_PROXY"]),
        ({"cloud_endpoint": "https://s3.test", "cloud_bucket": "abc"}, True, ["AWS_REGION", "HTTPS_PROXY"]),
        ({"cloud_region": "x"}, True, ["AWS_ENDPOINT_URL_S3", "HTTPS_PROXY"]),
        ({"cloud_endpoint": "file:///x"}, False, ["HTTPS_PROXY"]),
        ({"force_method": "http"}, False, ["HTTPS_PROXY"]),
    ],
)
def test_variables_that_stored_settings_replace_are_not_missing(settings, has_keys, names):
    missing = ["AKOSHA_CLOUD_BUCKET", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"]
    missing += ["HTTPS_PROXY", "SESSION_BUDDY_DATA_DIR"]
    assert not_stored(missing, Settings(**settings), has_keys=has_keys) == names


def test_an_environment_file_that_is_not_a_file_is_refused(tmp_path):
    assert not is_open_to_others(tmp_path / "none")
    with pytest.raises(AkoshaError, match="not a regular file that you own"):
        is_open_to_others(tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory that does not count as temporary."""
    monkeypatch.setattr(programs, "_TEMPORARY", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def installed(folder: Path) -> Path:
    folder.mkdir(parents=True)
    command = folder / "akosha-agent"
    command.touch(0o755)
    return command


def python(command: Path) -> str:
    return str(command.with_name("python"))


def test_a_link_that_survives_upgrades_is_preferred(home):
    command = installed(home / "share" / "uv" / "tools" / "akosha-agent" / "bin")
    assert programs.program(home, {}, python=python(command)) == (str(command),)
    link = home / ".local" / "bin" / "akosha-agent"
    link.parent.mkdir(parents=True)
    link.symlink_to(command)
    assert programs.program(home, {}, python=python(command)) == (str(link),)
    other = home / "bin" / "akosha-agent"
    other.parent.mkdir()
    other.symlink_to(command)
    assert programs.program(home, {"PIPX_BIN_DIR": str(other.parent)}, python=python(command)) == (str(other),)


def test_a_link_to_another_installation_is_not_used(home):
    command, other = installed(home / "venv" / "bin"), installed(home / "other" / "bin")
    link = home / ".local" / "bin" / "akosha-agent"
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    assert programs.program(home, {}, python=python(command)) == (str(command),)


@pytest.mark.parametrize(
    ("folder", "environ"),
    [
        pytest.param(".cache/uv/archive-v0/abc/bin", {}, id="uvx"),
        pytest.param("elsewhere/archive-v0/abc/bin", {"UV_CACHE_DIR": "elsewhere"}, id="uvx-cache-dir"),
        pytest.param(".local/share/pipx/.cache/abc/bin", {}, id="pipx-run"),
        pytest.param("px/.cache/abc/bin", {"PIPX_HOME": "px"}, id="pipx-home"),
        pytest.param("tmp/venv/bin", {}, id="temporary"),
    ],
)
def test_a_program_in_a_temporary_directory_is_refused_with_a_hint(home, folder, environ):
    command = installed(home / folder)
    with pytest.raises(AkoshaError, match="would stop working") as refused:
        programs.program(home, {key: str(home / value) for key, value in environ.items()}, python=python(command))
    assert "uv tool install" in refused.value.hint


def test_a_hook_of_a_program_in_a_temporary_directory_is_not_installed(home, monkeypatch):
    command = installed(home / "tmp" / "venv" / "bin")
    settings = home / "claude" / "settings.json"
    monkeypatch.setattr(hook_command, "_program", lambda: (python(command), "-EP", str(command)))
    with pytest.raises(AkoshaError, match="would stop working"):
        hook_commands.install(Settings(agent_state_dir=home / "state"), settings)
    assert not settings.exists()


def test_without_a_command_python_starts_the_module(home):
    own = home / "venv" / "bin"
    own.mkdir(parents=True)
    assert programs.program(home, {}, python=str(own / "python")) == (str(own / "python"), "-m", "agent")
