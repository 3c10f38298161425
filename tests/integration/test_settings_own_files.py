"""The agent's own files: config.yaml, and credentials.yaml, which only this user may open."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError
from agent.settings import load, loading, own_files
from agent.settings.model import S3_KEYS, SECRET
from agent.settings.own_files import config_home, s3_credentials
from agent.settings.yaml_file import read_settings_file

FOLDER = ".config/akosha-agent"
CONFIG, CREDENTIALS = f"~/{FOLDER}/config.yaml", f"~/{FOLDER}/credentials.yaml"


@pytest.fixture
def home(tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    return tmp_path


def write(home: Path, name: str, text: str, mode: int = 0o600) -> Path:
    path = home / name[2:]
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(home: Path, **environ: str):
    return load(environ=environ, cwd=home, home=home)


def refused(home: Path) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        loaded(home)
    return caught.value


def owned_by(owner: int):
    """Return the reader of settings files, which finds another owner."""

    def read(path, **options):
        file = read_settings_file(path, **options)
        return file and replace(file, owner=owner)

    return read


def test_the_prefix_is_optional_and_both_files_are_named(home):
    write(home, CONFIG, "cloud_bucket: memories\nakosha_max_retries: 5\n", 0o644)
    write(home, CREDENTIALS, "http_token: secret\nakosha_agent_http_token: another\n")
    found = loaded(home)
    assert (found.settings.cloud_bucket, found.settings.max_retries) == ("memories", 5)
    assert (found.origins["cloud_bucket"], found.origins["http_token"]) == (CONFIG, CREDENTIALS)
    assert found.settings.http_token.get_secret_value() == "secret"
    assert found.settings.agent_http_token.get_secret_value() == "another"
    assert (found.files, found.warnings) == ((CREDENTIALS, CONFIG), ())


def test_an_absolute_xdg_config_home_moves_the_files(home):
    (home / "xdg").mkdir()
    (home / "xdg" / "akosha-agent").mkdir()
    write(home, "~/xdg/akosha-agent/config.yaml", "system_id: elsewhere\n")
    write(home, CONFIG, "system_id: default\n")
    assert loaded(home, XDG_CONFIG_HOME=str(home / "xdg")).settings.system_id == "elsewhere"
    assert loaded(home, XDG_CONFIG_HOME="xdg").settings.system_id == "default"


def test_on_macos_the_files_are_in_application_support():
    assert config_home({}, Path("/Users/me"), "darwin") == Path("/Users/me/Library/Application Support")


def test_unknown_keys_warn_with_the_nearest_known_one(home):
    write(home, CONFIG, "cloud_buckt: x\ndata_dir: /x\nfoo: x\n")
    write(home, CREDENTIALS, "cloud_access_key: x\n")
    assert loaded(home).warnings == (
        f"cloud_access_key in {CREDENTIALS} is not a secret: did you mean cloud_access_key_id?",
        f"akosha_cloud_buckt in {CONFIG} is not a setting: did you mean akosha_cloud_bucket?",
        f"akosha_data_dir in {CONFIG} is not a setting: did you mean akosha_agent_data_dir?",
        f"akosha_foo in {CONFIG} is not a setting; akosha-agent config --all lists them",
    )


def test_a_key_with_and_without_prefix_is_an_error(home):
    write(home, CONFIG, "cloud_bucket: one\nakosha_cloud_bucket: two\n")
    assert refused(home).message == f"{CONFIG} has akosha_cloud_bucket twice, with and without akosha_"


def test_relative_paths_start_at_the_files_directory(home):
    write(home, CONFIG, "agent_state_dir: state\n")
    assert loaded(home).settings.agent_state_dir == home / FOLDER / "state"


@pytest.mark.parametrize("key", [*sorted(SECRET), *S3_KEYS])
@pytest.mark.parametrize("prefix", ["", "akosha_"])
def test_a_secret_in_the_settings_file_is_an_error_that_names_the_file_for_secrets(home, key, prefix):
    write(home, CONFIG, f"{prefix}{key}: hush\n")
    error = refused(home)
    assert error.message == f"{CONFIG} contains {key}: secrets belong in {CREDENTIALS}"
    both = "cloud_access_key_id - cloud_secret_access_key - moves them there"
    assert error.hint == f"akosha-agent config set {both if key in S3_KEYS else f'{key} - moves it there'}"
    assert "hush" not in str(error)


def test_a_nats_url_with_a_password_belongs_in_the_file_for_secrets(home):
    url = "agent_nats_url: tls://me:hush@nats.example\n"
    write(home, CONFIG, url)
    assert "agent_nats_url" in refused(home).message
    write(home, CONFIG, "")
    write(home, CREDENTIALS, url)
    assert loaded(home).settings.agent_nats_url == "tls://me:hush@nats.example"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_of_secrets_that_others_can_open_is_refused_with_the_command_that_fixes_it(home, mode):
    path = write(home, CREDENTIALS, "http_token: hush\n", mode)
    error = refused(home)
    assert error.message == f"{CREDENTIALS} is refused: other users can open it (mode {mode:04o})"
    assert error.hint == f"chmod 600 {path}; if this machine has other users, replace the keys, too"


def test_a_file_of_secrets_of_another_user_is_refused(home, monkeypatch):
    write(home, CREDENTIALS, "http_token: hush\n")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    error = refused(home)
    assert error.message == f"{CREDENTIALS} is refused: it belongs to user {owner}, who can change it"


@pytest.mark.parametrize("name", [CONFIG, "~/.claude/settings/local.yaml"])
def test_another_user_who_owns_a_settings_file_is_named(home, monkeypatch, name):
    (home / ".claude" / "settings").mkdir(parents=True)
    path = write(home, name, "akosha_max_retries: 5\n", 0o664)
    owner = 4321
    monkeypatch.setattr(loading, "read_settings_file", owned_by(owner))
    monkeypatch.setattr(own_files, "read_settings_file", owned_by(owner))
    (warning,) = loaded(home).warnings
    assert warning == (
        f"{name} belongs to user {owner}, who can change it, and with it decide where your memories are sent: "
        f"chown {os.geteuid()} {path}"
    )
    for trusted in (0, os.geteuid()):
        monkeypatch.setattr(loading, "read_settings_file", owned_by(trusted))
        monkeypatch.setattr(own_files, "read_settings_file", owned_by(trusted))
        assert loaded(home).warnings == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http_token: 123\n", "http_token in {} is not a text"),
        ("cloud_access_key_id: x\n", "{} must have both cloud_access_key_id and cloud_secret_access_key, or neither"),
        ("cloud_session_token: x\n", "{} must have both cloud_access_key_id and cloud_secret_access_key, or neither"),
        ("- x\n", "{} is not a mapping of keys to values"),
    ],
)
def test_invalid_secrets_are_an_error_without_the_value(home, text, problem):
    write(home, CREDENTIALS, text)
    assert refused(home).message == problem.format(CREDENTIALS)


def test_secrets_are_not_expanded_and_the_environment_has_priority(home):
    write(home, CREDENTIALS, "http_token: ${HOME}x\n")
    assert loaded(home, HOME="/h").settings.http_token.get_secret_value() == "${HOME}x"
    variable = {"SESSION_BUDDY_AKOSHA_HTTP_TOKEN": "other"}
    assert loaded(home, **variable).settings.http_token.get_secret_value() == "other"


def test_the_s3_keys_are_no_settings_and_a_token_is_optional(home):
    write(home, CREDENTIALS, "cloud_access_key_id: id\ncloud_secret_access_key: hush\n")
    assert loaded(home).warnings == ()
    found = s3_credentials({}, home)
    assert (found.access_key_id, found.secret_access_key, found.session_token) == ("id", "hush", None)
    assert "hush" not in repr(found)
    assert s3_credentials({}, home / "nobody") is None


def test_s3_keys_in_other_files_are_not_read_and_the_warning_names_the_command(home):
    (home / ".claude" / "settings").mkdir(parents=True)
    write(home, "~/.claude/settings/local.yaml", "akosha_cloud_access_key_id: x\n")
    assert loaded(home).warnings[0].endswith("is not read: akosha-agent config set cloud_access_key_id - stores it")


def test_a_named_file_that_is_the_agents_own_is_read_in_the_same_way(home):
    path = write(home, CONFIG, "system_id: mine\n")
    found = load(settings_file=path, environ={}, cwd=home, home=home)
    assert (found.settings.system_id, found.files) == ("mine", (str(path),))


def test_a_draft_is_read_instead_of_the_file(home):
    path = write(home, CONFIG, "system_id: old\n")
    found = load(environ={}, cwd=home, home=home, drafts={path: b"system_id: new\n"})
    assert found.settings.system_id == "new"
    assert path.read_text() == "system_id: old\n"
