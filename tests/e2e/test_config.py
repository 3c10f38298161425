"""`config`, `config set`, `unset` and `path`: what they show, and what they write to the agent's own files."""

import stat
import subprocess

import pytest

from tests.support.machine import Machine
from tests.support.terminal import on_terminal

CONFIG, CREDENTIALS = "~/.config/akosha-agent/config.yaml", "~/.config/akosha-agent/credentials.yaml"


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.set(cloud_endpoint=None, system_id=None, http_endpoint=None, retry_backoff_seconds=None)
    machine.set(agent_quiet_seconds=None, agent_min_interval_seconds=None)
    return machine


def config(machine, *words, code=0, lines=""):
    path = machine.home / "input"
    path.write_text(lines)
    with path.open() as stdin:
        done = machine.call("config", *words, directories=False, stdin=stdin)
    assert done.code == code, done.err
    return done


def own(machine, name):
    return machine.home / ".config" / "akosha-agent" / name


def test_set_writes_valid_settings_which_every_command_sees_and_unset_removes_them(machine):
    shown = config(machine)
    assert f"files  none (akosha-agent config set KEY VALUE creates {CONFIG})" in shown.out
    done = config(machine, "set", "cloud_bucket", "memories", "chunk_size_mb", "8", "akosha_system_id", "0012")
    assert done.out.splitlines() == [
        f"akosha_cloud_bucket: memories ({CONFIG})",
        f"akosha_chunk_size_mb: 8 ({CONFIG})",
        f"akosha_system_id: 0012 ({CONFIG})",
    ]
    text = own(machine, "config.yaml").read_text()
    assert text.endswith("cloud_bucket: memories\nchunk_size_mb: 8\nsystem_id: '0012'\n")
    own(machine, "config.yaml").write_text(f"{text}\n# a note\n")

    lines = config(machine).out.splitlines()
    assert lines[0] == f"files  {CONFIG}"
    assert [line.split()[0] for line in lines[1:] if CONFIG in line] == [
        "akosha_cloud_bucket", "akosha_system_id", "akosha_chunk_size_mb",
    ]  # fmt: skip
    assert lines[-1].endswith("others have their defaults: akosha-agent config --all")
    changed, everything = config(machine, "--json", "--changed").json, config(machine, "--json").json
    assert changed["files"] == [CONFIG]
    assert changed["settings"].keys() == {"akosha_cloud_bucket", "akosha_system_id", "akosha_chunk_size_mb"}
    assert changed["settings"].items() < everything["settings"].items()

    assert config(machine, "unset", "chunk_size_mb").out == "akosha_chunk_size_mb: 5 (default)\n"
    assert own(machine, "config.yaml").read_text().endswith("cloud_bucket: memories\nsystem_id: '0012'\n\n# a note\n")
    assert config(machine, "path").out == f"{own(machine, 'config.yaml')}\n"


def test_a_secret_is_read_and_stored_in_the_private_file_only(machine):
    machine.secrets = ("hush1", "hush2")
    keys = ("cloud_access_key_id", "-", "cloud_secret_access_key", "-", "http_token", "-")
    done = config(machine, "set", *keys, lines="AKIA0000\nhush1\nhush2\n")
    assert done.out.count(f"******** ({CREDENTIALS})\n") == 3
    path = own(machine, "credentials.yaml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().endswith(
        "cloud_access_key_id: AKIA0000\ncloud_secret_access_key: hush1\nhttp_token: hush2\n"
    )
    assert not own(machine, "config.yaml").exists()
    refused = config(machine, "set", "http_token", "other", code=2)
    assert "the value of http_token (akosha_http_token) is a secret" in refused.err
    assert "config set http_token -" in refused.err
    assert config(machine).out.count(CREDENTIALS) == 4

    own(machine, "config.yaml").write_text("http_token: hush2\n# kept\n")
    assert config(machine, code=2).err.count("secrets belong in") == 1
    config(machine, "set", "http_token", "-", lines="hush2\n")
    assert own(machine, "config.yaml").read_text() == "# kept\n"


def test_a_file_of_secrets_that_others_can_open_is_refused_before_a_secret_is_read(machine):
    path = own(machine, "credentials.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("http_token: earlier\n")
    path.chmod(0o644)
    for lines in ("", "canary\n"):
        done = config(machine, "set", "http_token", "-", code=2, lines=lines)
        assert f"{CREDENTIALS} is refused: other users can open it (mode 0644) (chmod 600 {path};" in done.err
    assert path.read_text() == "http_token: earlier\n"


def test_a_value_that_may_be_mistyped_is_stored_with_a_warning(machine):
    done = config(
        machine, "set", "agent_data_dir", "/no/data", "cloud_endpoint", "file:///no/disk", "system_id", "old laptop"
    )
    assert done.err.splitlines() == [
        "warning: /no/data does not exist now: mount its disk, or correct akosha_agent_data_dir",
        "warning: /no/disk does not exist now: mount its disk, or correct akosha_cloud_endpoint",
        "warning: the system ID in the target becomes old-laptop: it may have letters, digits, - and _ only",
    ]
    done = config(machine, "set", "system_id", "", "agent_data_dir", str(machine.data))
    assert (done.err, done.out.splitlines()[0]) == ("", f'akosha_system_id: "" ({CONFIG})')


def test_on_a_terminal_a_secret_is_asked_for_without_echo(machine):
    with on_terminal(machine, "config", "set", "http_token", "-") as terminal:
        terminal.answer("http_token: ", "canary")
        assert terminal.end() == 0
        assert "canary" not in terminal.screen
    assert own(machine, "credentials.yaml").read_text().endswith("http_token: canary\n")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("chunk_size_mb", "500"), "akosha_chunk_size_mb is 500 (command line): must be a whole number from 1 to 100"),
        (("force_method", "cloud"), "akosha_force_method is 'cloud' (command line): cloud needs akosha_cloud_bucket"),
        (("cloud_buckt", "x"), "cloud_buckt is not a setting: did you mean cloud_bucket?"),
        (("AKOSHA_AGENT_KEEP_DAILY", "7"), "is the variable of a setting: did you mean agent_keep_daily?"),
        (("cloud_bucket",), "cloud_bucket (akosha_cloud_bucket) has no value"),
        (
            ("system_id", "a\x1b[31mb"),
            "the value of akosha_system_id contains control characters (type it again without them)",
        ),
        (
            ("cloud_access_key_id", "-"),
            "standard input has no value for cloud_access_key_id (akosha_cloud_access_key_id)",
        ),
    ],
)
def test_what_is_not_valid_is_not_stored(machine, words, problem):
    machine.environ["AKOSHA_CLOUD_BUCKET"] = "of-this-shell"  # the service does not see it
    assert problem in config(machine, "set", *words, code=2).err
    assert not own(machine, "config.yaml").parent.exists()


def test_a_variable_of_this_shell_that_overrides_the_stored_value_is_named(machine):
    machine.environ["AKOSHA_CLOUD_BUCKET"] = "of-this-shell"
    done = config(machine, "set", "cloud_bucket", "stored")
    assert done.err == "warning: AKOSHA_CLOUD_BUCKET is set in this shell and is used instead here\n"


def test_a_linked_file_is_changed_where_it_is_and_keeps_its_mode(machine):
    path, target = own(machine, "config.yaml"), machine.home / "dotfiles.yaml"
    path.parent.mkdir(parents=True)
    target.write_text("cloud_bucket: memories\n")
    target.chmod(0o640)
    path.symlink_to(target)
    config(machine, "set", "cloud_region", "eu-1")
    assert (path.is_symlink(), stat.S_IMODE(target.stat().st_mode)) == (True, 0o640)
    assert target.read_text() == "cloud_bucket: memories\ncloud_region: eu-1\n"


def test_a_running_agent_is_named_with_the_command_that_makes_it_read_the_settings(machine):
    machine.write(commits=1)
    machine.set(cloud_endpoint=machine.bucket.as_uri())
    machine.set(agent_state_dir=machine.state)
    config(machine, "set", "agent_state_dir", str(machine.state))
    with machine.run() as agent:
        done = config(machine, "set", "system_id", "renamed")
        assert done.out.splitlines()[-1].endswith(f"uses the earlier settings until: kill -HUP {agent.pid}")
        done = machine.call("init", "--yes", "--to", str(machine.home / "elsewhere"), directories=False)
        assert done.out.splitlines()[-1].endswith(f"uses the earlier settings until: kill -HUP {agent.pid}")
        assert (done.code, "\nSync\n" in done.out) == (0, False)
        config(machine, "unset", "cloud_endpoint")
        subprocess.run(["kill", "-HUP", str(agent.pid)], check=True)
        assert agent.logged("settings_changed")[0]["keys"] == ["akosha_system_id"]
