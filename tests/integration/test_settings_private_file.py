"""A file with a secret is refused if it is not a regular file, cannot be read, or can be opened by others."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError
from agent.settings import check_private

KEY = "agent_nats_nkey_file"
CANARY = "c4n4ry-s3cr3t"
RESTRICTED = Path(__file__).parents[1] / "faults" / "restricted.py"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret file"
    path.write_text(CANARY)
    path.chmod(0o600)
    return path


def refused(path):
    with pytest.raises(SettingsError) as caught:
        check_private(path, KEY)
    error = caught.value
    assert error.message.startswith("akosha_agent_nats_nkey_file: ")
    assert str(path) in error.message
    assert error.hint
    assert CANARY not in str(error)
    return error


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file_is_accepted(secret, mode):
    secret.chmod(mode)
    check_private(secret, KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o440, 0o444, 0o602, 0o620, 0o610, 0o777])
def test_a_file_that_group_or_others_can_open_is_refused_with_the_command_that_fixes_it(secret, mode):
    secret.chmod(mode)
    error = refused(secret)
    assert f"(mode {mode:04o})" in error.message
    assert error.hint == f"chmod 600 '{secret}'"
    subprocess.run(error.hint, shell=True, check=True)
    check_private(secret, KEY)


def test_a_symlink_is_judged_by_its_target(secret, tmp_path):
    (tmp_path / "link").symlink_to(secret)
    check_private(tmp_path / "link", KEY)
    secret.chmod(0o640)
    assert "mode 0640" in refused(tmp_path / "link").message


def test_a_missing_secret_file_is_refused(tmp_path):
    (tmp_path / "dangling").symlink_to("nothing")
    for path in (tmp_path / "no.creds", tmp_path / "dangling"):
        error = refused(path)
        assert "does not exist" in error.message
        assert error.hint == "set akosha_agent_nats_nkey_file to the path of a file"


def test_a_file_that_is_not_regular_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        assert "is not a regular file" in refused(tmp_path / name).message


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path, secret):
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refused(tmp_path / "loop").message
    assert "cannot be opened: Not a directory" in refused(secret / "below").message


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "cannot be opened" in refused(Path("socket")).message


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root can drop its privileges only on Linux")
def test_a_file_without_read_permission_is_refused(secret):
    secret.chmod(0)
    code = (
        "import runpy, sys; from pathlib import Path; from agent.settings import check_private\n"
        "runpy.run_path(sys.argv[1])['drop_privileges'](); check_private(Path(sys.argv[2]), sys.argv[3])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(RESTRICTED), str(secret), KEY], capture_output=True, text=True, timeout=60
    )
    last = done.stderr.splitlines()[-1]
    assert f"akosha_{KEY}: no permission to read {secret}" in last
    assert f"chmod 600 '{secret}'" in last
