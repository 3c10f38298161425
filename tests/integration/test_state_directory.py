"""The state directory on a real disk, with real processes that compete for its lock and are killed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.state_directory import Holder, StateDirectory, lock
from agent.domain.errors import AlreadyRunning, NamingError, StateError
from tests.support import zygote

AT = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)

HOLD = (
    "import sys; from pathlib import Path; from agent.adapters.state_directory import StateDirectory\n"
    "with StateDirectory(Path(sys.argv[1])).lock('run --data-dir /d'):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def state(tmp_path):
    directory = StateDirectory(tmp_path / "state", now=lambda: AT)
    directory.prepare()
    return directory


def start(program: str, *args: object) -> subprocess.Popen[str]:
    """Start a Python program with pipes for input and output."""
    return zygote.popen(
        [sys.executable, "-c", program, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextmanager
def holding(path: Path, program: str = HOLD):
    with start(program, path) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# ----------------------------------------------------------------------------------------------------- preparation


def test_missing_directories_are_created_private(tmp_path):
    old = os.umask(0)
    try:
        state = StateDirectory(tmp_path / "a" / "b" / "state")
        with capture_logs() as logs:
            state.prepare(tmp_path / "data")
            state.prepare(tmp_path / "data")
    finally:
        os.umask(old)
    assert [mode(path) for path in (state.path, state.staging, state.spool)] == [0o700] * 3
    assert state.ledger_file.parent == state.path
    assert logs == []


@pytest.mark.parametrize("inner", ["", "staging", "spool"])
def test_a_mode_that_lets_others_in_is_fixed_with_a_warning(state, inner):
    (state.path / inner).chmod(0o755)
    with capture_logs() as logs:
        state.prepare()
    assert mode(state.path / inner) == 0o700
    assert [(line["event"], line["mode_was"]) for line in logs] == [("state_directory_made_private", "0755")]


def test_a_directory_of_another_user_is_refused(state, monkeypatch):
    state.path.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(
        StateError, match=f"belongs to user {os.getuid()}, but this process runs as user {os.getuid() + 1}"
    ):
        state.prepare()
    assert mode(state.path) == 0o755, "and is not changed"


@pytest.mark.parametrize("inner", ["staging", "spool"])
def test_a_link_in_place_of_an_inner_directory_is_refused(state, tmp_path, inner):
    """The agent deletes files in these directories, which must not be elsewhere."""
    (state.path / inner).rmdir()
    (tmp_path / "elsewhere").mkdir()
    (state.path / inner).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=f"{inner} is not a directory"):
        state.prepare()


def test_the_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "big-disk").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "big-disk")
    StateDirectory(tmp_path / "state").prepare()
    assert (tmp_path / "big-disk" / "spool").is_dir()


def test_a_file_in_place_of_the_directory_is_an_error_with_a_hint(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match=r"cannot be used: File exists .*set akosha_agent_state_dir"):
        StateDirectory(tmp_path / "state").prepare()


@pytest.mark.parametrize(
    ("state", "data"),
    [
        ("data/state", "data"),
        ("same", "same"),
        ("state", "state/data"),
        ("data/../data/state", "data"),
        ("link", "data"),
    ],
)
def test_overlapping_state_and_data_directories_are_refused(tmp_path, state, data):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "inner")
    with pytest.raises(StateError, match="overlap"):
        StateDirectory(tmp_path / state).prepare(tmp_path / data)
    assert not list((tmp_path / "data" / "inner").iterdir())


def test_directories_with_a_common_name_prefix_do_not_overlap(tmp_path):
    StateDirectory(tmp_path / "data-state").prepare(tmp_path / "data")


# -------------------------------------------------------------------------------------------------------- the lock


def test_the_holder_is_reported_while_the_lock_is_held(state):
    assert state.holder() is None
    with state.lock("run"):
        assert state.holder() == Holder(pid=os.getpid(), command="run", since=AT)
    assert state.holder() is None
    with state.lock("sync"):
        assert state.holder().command == "sync"


def test_a_missing_directory_has_no_holder(tmp_path):
    state = StateDirectory(tmp_path / "state")
    assert state.holder() is None
    assert not state.path.exists()
    with pytest.raises(StateError, match="cannot be used: No such file or directory"), state.lock("run"):
        pass


def test_a_second_locker_gets_an_error_that_names_the_holder(state):
    with holding(state.path) as first, pytest.raises(AlreadyRunning) as caught, state.lock("run"):
        pass
    assert caught.value.pid == first.pid
    assert caught.value.command == "run --data-dir /d"
    text = str(caught.value)
    assert f"in use by process {first.pid} (run --data-dir /d) since 20" in text
    assert "stop that process first" in text
    assert "an akosha_system_id and a --state-dir of its own" in text


def test_an_error_releases_the_lock(state):
    with pytest.raises(ZeroDivisionError), state.lock("run"):
        1 / 0  # noqa: B018
    assert state.holder() is None


def test_a_locker_without_retry_is_refused_at_once(state, monkeypatch):
    with state.lock("run"):
        monkeypatch.setattr(lock.time, "sleep", lambda _: pytest.fail("it slept"))
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} \\(run\\)"), state.lock("sync", retry=False):
            pass
    with state.lock("sync", retry=False):
        assert state.holder() == Holder(os.getpid(), "sync", AT)


def test_a_killed_process_releases_the_lock(state):
    with holding(state.path) as first:
        assert state.holder().pid == first.pid
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        assert state.holder() is None
        with state.lock("run"):
            assert state.holder().pid == os.getpid()


def test_a_child_of_a_killed_holder_does_not_hold_the_lock(state):
    """Even a child that inherits every inheritable descriptor."""
    program = (
        "import subprocess, sys; from pathlib import Path; from agent.adapters.state_directory import StateDirectory\n"
        "with StateDirectory(Path(sys.argv[1])).lock('run'):\n"
        "    quiet = 'import sys; print(\"held\", flush=True); sys.stdin.read()'\n"
        "    subprocess.run([sys.executable, '-c', quiet], close_fds=False)\n"
    )
    with holding(state.path, program) as first:
        assert state.holder().pid == first.pid
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        with state.lock("run"):  # the child still waits for the end of its input
            assert state.holder().pid == os.getpid()


def test_reading_the_holder_does_not_block_the_lock(state):
    """One process reads the holder all the time. Taking the lock never fails because of it."""
    program = (
        "import sys; from pathlib import Path; from agent.adapters.state_directory import StateDirectory\n"
        "state = StateDirectory(Path(sys.argv[1])); state.holder(); print('held', flush=True)\n"
        "while True: state.holder()\n"
    )
    with state.lock("run"):
        pass
    with holding(state.path, program):
        for _ in range(100):
            with state.lock("run"):
                assert state.holder().pid == os.getpid()


def test_one_of_many_concurrent_lockers_gets_the_lock(state):
    program = (
        "import sys; from pathlib import Path; from agent.adapters.state_directory import StateDirectory\n"
        "from agent.domain.errors import AlreadyRunning\n"
        "try:\n"
        "    with StateDirectory(Path(sys.argv[1])).lock('run'):\n"
        "        print('held', flush=True); sys.stdin.read()\n"
        "except AlreadyRunning as error:\n"
        "    print(error.pid, flush=True)\n"
    )
    processes = [start(program, state.path) for _ in range(4)]
    try:
        outputs = [process.stdout.readline().strip() for process in processes]
        winner = processes[outputs.index("held")]
        assert sorted(outputs) == sorted([str(winner.pid)] * 3 + ["held"])
    finally:
        for process in processes:
            process.communicate()


def test_a_holder_without_a_complete_lock_file_is_still_a_holder(state):
    lock = state.path / "agent.lock"
    with state.lock("run"):
        lock.write_text('{"pid": 1')
        assert state.holder() == Holder()
        with pytest.raises(AlreadyRunning, match="in use by another process") as caught, state.lock("run"):
            pass
        assert caught.value.pid == 0


def test_a_lock_file_that_is_a_symlink_is_not_followed(state, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (state.path / "agent.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StateError, match="cannot be used"), state.lock("run"):
        pass
    with pytest.raises(StateError, match="cannot be used"):
        state.holder()
    assert (tmp_path / "precious").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- the identity


def test_the_host_name_of_the_first_start_is_kept_when_it_changes(state):
    first = state.identity("my.mac.local", "")
    assert first.system_id == "my-mac-local"
    assert len(first.agent_id) >= 16
    assert int(first.agent_id, 16) >= 0
    assert state.identity("guest-42.cafe.example", "") == first
    assert mode(state.path / "identity.json") == 0o600


def test_a_setting_overrides_the_stored_system_id_without_replacing_it(state):
    first = state.identity("laptop", "")
    assert state.identity("laptop", "My Mac!").system_id == "My-Mac"
    assert state.identity("laptop", "other").agent_id == first.agent_id
    assert state.identity("roaming", "") == first


def test_a_first_start_with_a_setting_stores_the_host_name(state):
    first = state.identity("laptop", "work")
    assert first.system_id == "work"
    later = state.identity("roaming", "")
    assert later.system_id == "laptop"
    assert later.agent_id == first.agent_id


def test_a_host_name_that_cannot_be_an_id_needs_the_setting(state):
    with pytest.raises(NamingError, match="set akosha_system_id"):
        state.identity("日本", "")
    assert not (state.path / "identity.json").exists()
    first = state.identity("日本", "desk")
    assert first.system_id == "desk"
    with pytest.raises(NamingError):
        state.identity("日本", "")
    assert state.identity("renamed", "").system_id == "renamed"
    assert state.identity("again", "") == state.identity("renamed", "")
    assert state.identity("again", "").agent_id == first.agent_id


def test_two_state_directories_have_different_agent_ids(tmp_path):
    ids = set()
    for name in ("a", "b"):
        state = StateDirectory(tmp_path / name)
        state.prepare()
        ids.add(state.identity("host", "").agent_id)
    assert len(ids) == 2


def test_many_first_starts_at_once_agree_on_one_identity(state):
    program = (
        "import sys; from pathlib import Path; from agent.adapters.state_directory import StateDirectory\n"
        "state = StateDirectory(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "state.prepare(); print(state.identity(sys.argv[2], ''), flush=True)\n"
    )
    processes = [start(program, state.path, f"host-{number}") for number in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = {process.communicate()[0] for process in processes}
    assert len(outputs) == 1
    assert outputs == {f"{state.identity('late', '')}\n"}


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"null", b"[]", b"\xff\x00", b"{}", b'{"agent_id": 5, "system_id": "x"}',
        b'{"agent_id": "short", "system_id": "x"}', b'{"agent_id": "0123456789abcdef", "system_id": "a/../b"}',
        b'{"agent_id": "0123456789abcdef", "system_id": 5}', b'{"agent_id": "0123456789abcdef"}',
    ],
)  # fmt: skip
def test_a_damaged_identity_is_an_error_with_a_hint_and_is_not_replaced(state, damage):
    file = state.path / "identity.json"
    file.write_bytes(damage)
    with pytest.raises(StateError, match=r"identity.json is damaged: .*restore it from a backup; or delete it"):
        state.identity("host", "set")
    assert file.read_bytes() == damage


def test_a_draft_of_a_killed_first_start_is_ignored_and_removed(state):
    (state.path / ".identity.json.draft").write_bytes(b'{"agent')
    identity = state.identity("host", "")
    kept = json.loads((state.path / "identity.json").read_bytes())
    assert kept == {"agent_id": identity.agent_id, "system_id": "host"}
    assert not (state.path / ".identity.json.draft").exists()


def test_an_identity_from_a_newer_version_is_read(state):
    (state.path / "identity.json").write_text(
        json.dumps({"agent_id": "0123456789abcdef", "system_id": "mac", "made_at": "2030-01-01"})
    )
    assert state.identity("host", "").system_id == "mac"


def test_the_identity_of_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(StateError, match="cannot be used: No such file or directory"):
        StateDirectory(tmp_path / "gone").identity("host", "")
