"""`init`, by flags and on a terminal: every kind of destination, wrong answers, Ctrl-C, and a second run."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from agent.entrypoints.cli.app import app
from agent.entrypoints.init import command
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.service_commands import OTHER_COMMAND, SYSTEMCTL, UNIT
from tests.support.terminal import on_terminal

pytest_plugins = ["tests.support.servers.fixtures"]

OFFERS = ("--no-service", "--no-mcp")
CLAUDE = """#!/bin/sh
echo "$*" >> "$HOME/claude.log"
[ "$2" = get ] && exit 1
exit 0
"""


BROKEN_CLAUDE = """#!/bin/sh
[ "$2" = add ] && echo no >&2
exit 1
"""


@pytest.fixture
def machine(tmp_path):
    """A machine without any setting, whose databases are where Session-Buddy creates them."""
    machine = Machine(tmp_path)
    for key in ("cloud_endpoint", "system_id", "http_endpoint", "retry_backoff_seconds"):
        machine.set(**{key: None})
    machine.set(agent_quiet_seconds=None, agent_min_interval_seconds=None)
    machine.environ |= {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    machine.data.rmdir()
    machine.data = machine.home / ".claude" / "data"
    machine.data.mkdir(parents=True)
    machine.state = machine.home / ".local" / "state" / "akosha-agent"
    machine.write(commits=1, entities=1)
    return machine


def stored(machine, name="config.yaml"):
    path = machine.home / ".config" / "akosha-agent" / name
    if not path.exists():
        return None
    return "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))


def init(machine, *words, code=0, **environ):
    machine.environ |= environ
    done = machine.call("init", "--yes", *words, directories=False)
    assert done.code == code, (done.out, done.err)
    return done


# ----------------------------------------------------------------------------------------------------------- by flags


def test_by_flags_memories_are_delivered_and_every_shell_has_the_settings(machine):
    done = init(machine, "--to", machine.bucket.as_uri(), "--system-id", "laptop")
    assert f"directory: {machine.bucket.as_uri()}: put, get, list and delete work" in done.out
    assert f"target disk: {machine.bucket} is on the same disk as the databases" in done.out
    assert "the service lacks" not in done.err, "there is no service"
    assert (
        "\nEverything is uploaded; for later changes: akosha-agent service install, or akosha-agent run\n" in done.out
    )
    assert (len(machine.manifests), machine.manifests[0]["system_id"]) == (1, "laptop")
    assert stored(machine) == f"cloud_endpoint: {machine.bucket.as_uri()}\nsystem_id: laptop\n"
    another_shell = {"HOME": machine.environ["HOME"], "PATH": machine.environ["PATH"]}
    status = machine.call("status", "--json", directories=False, env=another_shell, cwd="/").json
    assert (status["system_id"], status["pending"], status["targets"][0]["endpoint"]) == (
        "laptop", [], machine.bucket.as_uri(),
    )  # fmt: skip

    again = init(machine)
    assert f"memories go to {machine.bucket.as_uri()} (~/.config/akosha-agent/config.yaml)" in again.out
    assert "stored in" not in again.out
    assert len(machine.manifests) == 1


def test_keys_of_this_shell_are_stored_for_the_service_and_a_change_of_target_removes_its_settings(machine, moto):
    bucket = moto.new_bucket()
    done = init(
        machine, "--to", f"{moto.endpoint}/{bucket}",
        AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY,
    )  # fmt: skip
    assert SECRET_KEY not in done.out + done.err
    assert "ok       clock: within " in done.out
    assert stored(machine) == f"cloud_endpoint: {moto.endpoint}\ncloud_bucket: {bucket}\n"
    assert stored(machine, "credentials.yaml") == (
        f"cloud_access_key_id: {ACCESS_KEY}\ncloud_secret_access_key: {SECRET_KEY}\n"
    )
    init(machine, "--to", str(machine.bucket))
    assert stored(machine) == f"cloud_endpoint: {machine.bucket.as_uri()}\n"
    assert len(machine.manifests) == 1


def test_what_only_this_shell_has_is_stored_or_named(machine, moto):
    bucket = moto.new_bucket()
    machine.data = machine.data.rename(machine.home / "elsewhere")
    unit = machine.home / ".config" / "systemd" / "user" / "akosha-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    done = init(
        machine, "--to", f"s3://{bucket}", "--system-id", "laptop",
        SESSION_BUDDY_DATA_DIR=str(machine.data), AWS_ENDPOINT_URL_S3=moto.endpoint, AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_SESSION_TOKEN="temporary",
    )  # fmt: skip
    assert stored(machine) == (
        f"agent_data_dir: {machine.data}\ncloud_endpoint: {moto.endpoint}\ncloud_region: us-east-1\n"
        f"cloud_bucket: {bucket}\nsystem_id: laptop\n"
    )
    assert stored(machine, "credentials.yaml") is None
    (warning,) = [line for line in done.err.splitlines() if "the service lacks" in line]
    named, _, advice = warning.partition(". ")
    assert all(f" {name}" in named for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HTTPS_PROXY"))
    assert not any(name in named for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "DATA_DIR"))
    assert advice.startswith("Its keys expire within hours: akosha-agent config set")


def test_nothing_is_stored_if_the_test_fails_unless_it_is_forced(machine):
    words = ("--to", "http://127.0.0.1:9", "--bucket", "memories")
    done = init(machine, *words, code=1)
    assert "error    bucket: s3://memories at 127.0.0.1:9 cannot be reached" in done.out
    assert "the test failed; nothing was stored" in done.err
    assert stored(machine) is None
    keys = machine.home / "keys"
    keys.write_text("AKIA0000\ncanary\n")
    with keys.open() as stdin:
        done = machine.call("init", "--yes", *words, "--force", "--keys-from-stdin", directories=False, stdin=stdin)
    assert (done.code, "\nSync\n" in done.out) == (1, True)
    assert stored(machine) == "cloud_endpoint: http://127.0.0.1:9\ncloud_bucket: memories\n"
    assert stored(machine, "credentials.yaml").endswith("cloud_secret_access_key: canary\n")


def test_a_stored_token_is_not_sent_to_another_server(machine):
    machine.data.rename(machine.data.with_name("no databases"))
    words = ("--to", "akosha+http://127.0.0.1:9/mcp", "--force")
    init(machine, *words, SESSION_BUDDY_AKOSHA_HTTP_TOKEN="canary")
    del machine.environ["SESSION_BUDDY_AKOSHA_HTTP_TOKEN"]
    assert stored(machine, "credentials.yaml") == "http_token: canary\n"
    init(machine, *words)
    assert stored(machine, "credentials.yaml") == "http_token: canary\n"
    done = init(machine, "--to", "akosha+http://127.0.0.1:10/mcp", "--force")
    assert "An Akosha server stores only memories that have an embedding" in done.out
    assert stored(machine, "credentials.yaml") == ""


def test_settings_of_session_buddys_files_are_overridden(machine):
    path = machine.home / ".claude" / "settings" / "local.yaml"
    path.parent.mkdir()
    path.write_text("akosha_cloud_region: elsewhere\nakosha_force_method: http\n")
    done = init(machine, "--to", str(machine.bucket))
    assert "settings are also read from ~/.claude/settings/local.yaml" in done.out
    assert stored(machine) == f"cloud_endpoint: {machine.bucket.as_uri()}\ncloud_region: auto\nforce_method: auto\n"


def test_hook_and_mcp_server_are_installed_if_a_flag_says_so(machine):
    claude = machine.home / "bin" / "claude"
    claude.parent.mkdir()
    claude.write_text(CLAUDE)
    claude.chmod(0o755)
    machine.environ["PATH"] = f"{claude.parent}:{machine.environ['PATH']}"
    init(machine, "--to", str(machine.bucket), "--hook", "--mcp")
    assert "hook session-end" in (machine.home / ".claude" / "settings.json").read_text()
    (added,) = [line for line in (machine.home / "claude.log").read_text().splitlines() if line.startswith("mcp add")]
    assert added.startswith("mcp add --scope user akosha-agent -- ")
    assert added.endswith("akosha-agent mcp")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "--yes needs --to"),
        (("--to", "nonsense"), "--to nonsense is not an address"),
        (("--to", "/no/such/place"), "/no/such does not exist"),
        (("--to", "s3://"), "--to s3:// has no bucket (s3://BUCKET)"),
        (("--to", "/etc/passwd/x"), "/etc/passwd is a file, not a directory"),
        (("--to", "/mnt", "--bucket", "memories"), "--bucket and --region belong to an S3 store"),
        (("--to", "~/.claude/data/sub"), "is in the data directory, "),
        (("--to", "s3://UP"), "the bucket UP must be 3 to 63 lower-case letters"),
        (("--to", "http://nas.lan:9000", "--bucket", "memories"), "http:// to nas.lan is not allowed"),
        (("--bucket", "memories"), "--bucket and --region need --to"),
        (("--to", "/no/such/place", "--system-id", "///"), "--system-id '///' must have letters"),
        (("--to", "s3://memories", "--keys-from-stdin"), "standard input has no line for cloud_access_key_id"),
    ],
)
def test_a_wrong_flag_is_explained_and_nothing_is_stored(machine, words, problem):
    assert problem in init(machine, *words, code=2).err
    assert not (machine.home / ".config").exists()


def test_ctrl_c_in_the_first_sync_leaves_the_settings_and_names_the_command_that_goes_on(machine, monkeypatch):
    async def stopped(_settings: object) -> int:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError

    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "_sync", stopped)
    done = CliRunner().invoke(app, ["init", "--yes", "--to", str(machine.bucket)])
    assert (done.exit_code, stored(machine)) == (130, f"cloud_endpoint: {machine.bucket.as_uri()}\n")
    assert "stopped; the settings are stored. The rest is done by: akosha-agent init" in done.stderr


def test_without_a_terminal_the_flags_are_named(machine):
    done = machine.call("init", directories=False)
    assert (done.code, "akosha-agent init --yes --to ADDRESS" in done.err) == (2, True)


# ------------------------------------------------------------------------------------------------------- on a terminal


def test_a_directory_on_a_terminal_with_wrong_answers_first_and_a_second_run(machine):
    with on_terminal(machine, "init", *OFFERS, "--to", str(machine.bucket), "--system-id", "laptop") as terminal:
        terminal.expect("Install the hook")
        assert terminal.interrupt() == 130
    assert (stored(machine), machine.bucket.exists(), machine.state.exists()) == (None, False, False)
    with on_terminal(machine, "init", *OFFERS) as terminal:
        terminal.answer("Choice [1]", "9")
        assert "9 is not a number from 1 to 5" in terminal.expect("Choice [1]")
        terminal.answer("", "1")
        terminal.answer("Directory", "/no/such/place")
        assert "/no/such does not exist" in terminal.expect("Directory")
        terminal.answer("", str(machine.bucket))
        terminal.answer("Name of this machine", "laptop")
        terminal.answer("Install the hook", "y")
        assert terminal.end() == 0, terminal.screen
        assert "\x1b[32mEverything is uploaded; " in terminal.screen
    assert [one["system_id"] for one in machine.manifests] == ["laptop"]
    assert "hook session-end" in (machine.home / ".claude" / "settings.json").read_text()
    before = stored(machine)
    with on_terminal(machine, "init", *OFFERS) as terminal:
        terminal.expect(f"memories go to {machine.bucket.as_uri()}")
        terminal.answer("Send memories elsewhere? [y/N]", "")
        assert terminal.end() == 0
        assert "Name of this machine" not in terminal.screen
        assert "hook" not in terminal.screen
    assert stored(machine) == before


def test_a_store_on_a_terminal_whose_secret_is_not_shown_and_is_asked_again_if_it_is_wrong(machine, moto, rclone):
    bucket = rclone.new_bucket()
    with on_terminal(machine, "init", *OFFERS, "--no-hook", "--system-id", "laptop") as terminal:
        terminal.answer("Choice [1]", "4")
        terminal.answer("URL of the store", rclone.endpoint)
        terminal.answer("Bucket", bucket)
        for secret, passes in (("another-secret", False), (SECRET_KEY, True)):
            terminal.answer("Access key ID (empty: the AWS configuration in ~/.aws)", ACCESS_KEY)
            terminal.answer("Secret access key (not shown): ", secret)
            if not passes:
                terminal.expect("type both again")
                terminal.expect("the test failed; nothing was stored")
                assert stored(machine) is None
                terminal.answer("Type the keys again?", "y")
        assert terminal.end() == 0, terminal.screen
        assert SECRET_KEY not in terminal.screen
        assert "another-secret" not in terminal.screen
    assert f"cloud_secret_access_key: {SECRET_KEY}" in stored(machine, "credentials.yaml")
    assert len(machine.call("uploads", "--json", directories=False).json["uploads"]) == 1


def test_r2_aws_and_an_akosha_server_on_a_terminal_and_ctrl_c_leaves_everything_as_it_was(machine):
    before = sorted(machine.home.rglob("*"))
    words = ("--to", "http://127.0.0.1:9", "--bucket", "memories", "--allow-plaintext")
    with on_terminal(machine, "init", *OFFERS, "--no-hook", *words) as terminal:
        terminal.answer("Access key ID", "")
        terminal.answer("Name of this machine", "")
        terminal.expect("127.0.0.1:9 cannot be reached")
        terminal.answer("Answer the questions again?", "y")
        terminal.answer("Choice [1]", "2")
        terminal.answer("Account ID", "mine")
        assert "mine is not an account ID" in terminal.expect("Account ID")
        terminal.answer("", "0123456789abcdef" * 2)
        terminal.answer("Bucket", "memories")
        terminal.answer("Access key ID", ACCESS_KEY)
        terminal.answer("Secret access key (not shown): ", SECRET_KEY)
        terminal.answer("Name of this machine", "")
        terminal.expect("r2.cloudflarestorage.com cannot be reached")
        terminal.answer("Answer the questions again?", "y")
        terminal.answer("Choice [1]", "3")
        terminal.answer("Bucket", "memories")
        terminal.answer("Region", "eu-central-1")
        terminal.answer("Access key ID", "")
        terminal.answer("Name of this machine", "")
        terminal.expect("the test failed")
        terminal.answer("Answer the questions again?", "y")
        terminal.answer("Choice [1]", "4")
        terminal.answer("URL of the store", "http://nas.lan:9000")
        terminal.answer("Bucket", "memories")
        terminal.answer("unencrypted to nas.lan", "n")
        terminal.expect("http:// to nas.lan is not allowed")
        terminal.answer("Answer the questions again?", "y")
        terminal.answer("Choice [1]", "5")
        terminal.expect("An Akosha server stores only memories that have an embedding")
        terminal.answer("URL of the server", "http://127.0.0.1:9/mcp")
        terminal.answer("empty: none): ", "")
        terminal.answer("Name of this machine", "")
        terminal.expect("the test failed")
        terminal.expect("Answer the questions again?")
        assert terminal.interrupt() == 130
        assert "stopped; nothing was stored" in terminal.screen
    assert sorted(machine.home.rglob("*")) == before


def test_http_keys_of_the_shell_and_a_change_of_target_on_a_terminal(machine, rclone):
    bucket = rclone.new_bucket()
    words = ("init", *OFFERS, "--no-hook", "--system-id", "laptop")
    machine.environ |= {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": "temporary",
    }  # fmt: skip
    with on_terminal(machine, *words) as terminal:
        terminal.answer("Choice [1]", "4")
        terminal.answer("URL of the store", "http://nas.invalid:9000")
        terminal.answer("Bucket", "memories")
        terminal.answer("unencrypted to nas.invalid", "y")
        terminal.answer("Access key ID", "")  # keys with a session token are not offered to be stored
        terminal.expect("nas.invalid")
        terminal.answer("Answer the questions again?", "n")
        assert terminal.end() == 1, terminal.screen
    assert stored(machine) is None
    del machine.environ["AWS_SESSION_TOKEN"]
    with on_terminal(machine, *words) as terminal:
        terminal.answer("Choice [1]", "4")
        terminal.answer("URL of the store", rclone.endpoint)
        terminal.answer("Bucket", bucket)
        terminal.answer("Store the value of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "")
        assert terminal.end() == 0, terminal.screen
    assert f"cloud_secret_access_key: {SECRET_KEY}" in stored(machine, "credentials.yaml")
    with on_terminal(machine, *words) as terminal:
        terminal.expect(f"memories go to s3://{bucket}")
        terminal.answer("Send memories elsewhere? [y/N]", "y")
        terminal.answer("Choice [1]", "")
        terminal.answer("Directory", str(machine.bucket))
        assert terminal.end() == 0, terminal.screen
    assert stored(machine) == f"cloud_endpoint: {machine.bucket.as_uri()}\nsystem_id: laptop\n"
    assert len(machine.manifests) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="for systemd")
def test_the_service_and_a_claude_code_that_adds_no_server_on_a_terminal(machine):
    folder = machine.home / "bin"
    folder.mkdir()
    for name, text in {"systemctl": SYSTEMCTL, "loginctl": OTHER_COMMAND, "claude": BROKEN_CLAUDE}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    machine.environ |= {"PATH": f"{folder}:{machine.environ['PATH']}", "FAKE": str(machine.home)}
    with on_terminal(machine, "init", "--to", str(machine.bucket), "--system-id", "laptop") as terminal:
        terminal.answer("Run the agent as a service", "y")
        terminal.answer("Install the hook", "n")
        terminal.answer("Add the agent's MCP server", "y")
        terminal.expect("Claude Code did not add the MCP server: no (claude mcp add --scope user")
        assert terminal.end() == 1, terminal.screen
    assert (len(machine.manifests), (machine.home / "running").exists()) == (1, True)
    unit = machine.home / ".config" / "systemd" / "user" / UNIT
    assert "Environment=" not in unit.read_text()
    if analyze := shutil.which("systemd-analyze"):
        environ = machine.environ | {"XDG_RUNTIME_DIR": str(machine.home)}
        done = subprocess.run(
            [analyze, "--user", "--man=no", "verify", str(unit)],
            env=environ,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_akosha_server_on_a_terminal(machine):
    (machine.home / ".config" / "akosha-agent").mkdir(parents=True)
    (machine.home / ".config" / "akosha-agent" / "config.yaml").write_text("http_missing_embedding: zero\n")
    with Akosha() as server, on_terminal(machine, "init", *OFFERS, "--no-hook", "--system-id", "laptop") as terminal:
        terminal.answer("Choice [1]", "5")
        terminal.answer("URL of the server", server.url)
        terminal.answer("empty: none): ", "")
        assert terminal.end() == 0, terminal.screen
        assert len(server.rows("laptop")) == 3
    expected = f"http_missing_embedding: zero\nhttp_endpoint: {server.url}\nforce_method: http\nsystem_id: laptop\n"
    assert stored(machine) == expected
