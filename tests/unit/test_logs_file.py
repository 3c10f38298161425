"""The log file is rotated, private and reopened if moved; its errors never reach the agent."""

import errno
import json
import logging
import os
import resource
import stat
import threading
from pathlib import Path

import pytest
import structlog

from agent.domain.errors import SettingsError
from agent.entrypoints import logs
from agent.entrypoints.logs.file import KEPT, LogFile
from agent.entrypoints.logs.location import LogLocation
from agent.settings import Settings
from tests.support.logging_state import logging_restored


@pytest.fixture
def location(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "state" / "spool").mkdir(parents=True)

    def of(file, max_bytes=1 << 20):
        return LogLocation(
            file=tmp_path / file, max_bytes=max_bytes, data_dir=tmp_path / "data", state_dir=tmp_path / "state"
        )

    return of


@pytest.fixture
def _restore_logging():
    with logging_restored():
        yield


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def descriptors():
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.usefixtures("_restore_logging")
def test_lines_go_only_to_the_file_as_json(location, tmp_path, capsys):
    logs.configure("INFO", "auto", location("logs/deep/agent.log"))
    structlog.get_logger().info("agent_started", system_id="mac")
    logging.getLogger("aiohttp").warning("odd")
    file = tmp_path / "logs/deep/agent.log"
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["agent_started", "odd"]
    assert capsys.readouterr() == ("", "")
    assert (mode(file), mode(file.parent), mode(file.parent.parent)) == (0o600, 0o700, 0o700)


@pytest.mark.usefixtures("_restore_logging")
def test_configuring_again_closes_the_previous_file(location, tmp_path):
    before = descriptors()
    for number in range(20):
        logs.configure("INFO", "json", location(f"logs/{number % 2}.log"))
        structlog.get_logger().info("line", number=number)
    assert descriptors() == before + 1
    logs.configure("INFO", "json")
    assert descriptors() == before
    assert [len((tmp_path / f"logs/{n}.log").read_text().splitlines()) for n in (0, 1)] == [10, 10]


def test_a_full_file_is_rotated_and_five_private_ones_are_kept(tmp_path):
    log = LogFile(tmp_path / "agent.log", 100)
    for number in range(40):
        log.write(f"{number:039d}\n")  # two lines per file
    log.close()
    names = ["agent.log", *(f"agent.log.{n}" for n in range(1, KEPT + 1))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert "".join((tmp_path / name).read_text() for name in reversed(names)).split() == [
        f"{number:039d}" for number in range(40 - 2 * 6, 40)
    ]
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


def test_a_line_longer_than_the_file_limit_is_written_completely(tmp_path):
    log = LogFile(tmp_path / "agent.log", 10)
    log.write("x" * 1000 + "\n")
    log.write("y\n")
    log.close()
    assert (tmp_path / "agent.log").read_text() == "y\n"
    assert (tmp_path / "agent.log.1").read_text() == "x" * 1000 + "\n"


@pytest.mark.parametrize("change", ["moved", "deleted"])
def test_a_file_that_logrotate_moved_or_deleted_is_reopened(tmp_path, change):
    file = tmp_path / "agent.log"
    log = LogFile(file, 1000)
    log.write("one\n")
    file.rename(tmp_path / "old") if change == "moved" else file.unlink()
    log.write("two\n")
    log.close()
    assert file.read_text() == "two\n"
    assert change == "deleted" or (tmp_path / "old").read_text() == "one\n"


def test_a_truncated_file_continues_at_its_start(tmp_path):
    file = tmp_path / "agent.log"
    log = LogFile(file, 1000)
    log.write("one\n")
    os.truncate(file, 0)
    log.write("two\n")
    log.close()
    assert file.read_text() == "two\n"


def test_unwritable_lines_go_to_stderr_after_one_line_with_the_reason(tmp_path, capsys):
    folder = tmp_path / "logs"
    log = LogFile(folder / "agent.log", 1000)  # the folder does not exist
    log.write("one\n")
    log.write("two\n")
    reason, *rest = capsys.readouterr().err.splitlines()
    assert reason == (
        f"akosha-agent: the log file {folder}/agent.log cannot be written, so lines go to standard error: "
        "No such file or directory"
    )
    assert rest == ["one", "two"]
    folder.mkdir()
    log.write("three\n")
    log.close()
    assert (folder / "agent.log").read_text() == "three\n"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a file of another user")
def test_a_file_that_another_user_has_created_gets_no_line(tmp_path, capsys):
    file = tmp_path / "agent.log"
    file.touch(mode=0o666)
    os.chown(file, 65_534, -1)
    log = LogFile(file, 1 << 20)
    log.write("line\n")
    log.close()
    assert file.read_bytes() == b""
    assert capsys.readouterr().err.endswith(
        f"the log file {file} cannot be written, so lines go to standard error: it belongs to user 65534\nline\n"
    )


def test_a_full_disk_loses_and_truncates_no_line(tmp_path, capsys):
    file = tmp_path / "agent.log"
    log = LogFile(file, 1000)
    log.write("one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, hard))  # like a full disk: a write is cut off
    try:
        log.write("two, torn\n")
        log.write("three, untouched\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("four\n")
    log.close()
    assert file.read_text().splitlines() == ["one", "two", "four"]
    lines = capsys.readouterr().err.splitlines()
    assert "File too large" in lines[0]
    assert lines[1:] == ["two, torn", "three, untouched"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_in_a_read_only_directory_the_file_grows_and_loses_no_line(tmp_path, capsys):
    log = LogFile(tmp_path / "agent.log", 20)
    log.write("0123456789\n")
    tmp_path.chmod(0o500)
    try:
        for _ in range(3):
            log.write("0123456789\n")
    finally:
        tmp_path.chmod(0o700)
    log.close()
    assert (tmp_path / "agent.log").read_text() == "0123456789\n" * 4
    assert "cannot be rotated" in capsys.readouterr().err


def test_a_file_that_cannot_be_rotated_keeps_growing_with_a_report(tmp_path, capsys, monkeypatch):
    log = LogFile(tmp_path / "agent.log", 20)

    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(log, "rotate", refuse)
    for _ in range(4):
        log.write("0123456789\n")
    log.close()
    assert (tmp_path / "agent.log").read_text() == "0123456789\n" * 4
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("cannot be rotated, so it keeps growing: Permission denied" in line for line in lines)
    assert len(lines) < 4


def test_many_threads_write_complete_lines(tmp_path):
    log = LogFile(tmp_path / "agent.log", 4000)
    text = "0123456789" * 5

    def work():
        for _ in range(50):
            log.write(f"{text}\n")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert {line for path in tmp_path.iterdir() for line in path.read_text().splitlines()} == {text}


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("data/agent.log", "is in the data directory"),
        ("data/logs/agent.log", "is in the data directory"),
        ("elsewhere/../data/agent.log", "is in the data directory"),
        ("link/agent.log", "is in the data directory"),
        ("a-link.log", "is in the data directory"),
        ("state/spool/agent.log", "that the agent empties"),
        ("state/staging/agent.log", "that the agent empties"),
        ("state/ledger.sqlite", "may be one of the agent's own files"),
        ("state", "may be one of the agent's own files"),
        ("pipe.log", "is not a regular file"),
        ("folder.log", "is not a regular file"),
    ],
)
def test_a_location_that_is_not_allowed_is_refused_with_a_hint(tmp_path, location, file, reason):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "a-link.log").symlink_to(tmp_path / "data" / "not-yet.log")
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "folder.log").mkdir()
    with pytest.raises(SettingsError, match=reason) as caught:
        location(file).prepare()
    assert "akosha_agent_log_file" in caught.value.message
    assert caught.value.hint
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("file", ["agent.log", "state/agent.log", "state/logs/agent.log", "database/agent.log"])
def test_other_locations_are_accepted(location, file):
    assert location(file).prepare().parent.is_dir()


def test_a_symbolic_link_is_resolved_so_that_its_target_is_rotated(location, tmp_path):
    (tmp_path / "var").mkdir()
    (tmp_path / "agent.log").symlink_to(tmp_path / "var" / "real.log")
    assert location("agent.log").prepare() == tmp_path / "var" / "real.log"


def test_the_location_is_read_from_the_settings(tmp_path):
    assert LogLocation.of(Settings()) is None
    settings = Settings(agent_log_file=tmp_path / "a.log", agent_log_file_mb=2)
    found = LogLocation.of(settings)
    assert found is not None
    assert (found.file, found.max_bytes) == (tmp_path / "a.log", 2 << 20)
    assert (found.data_dir, found.state_dir) == (settings.agent_data_dir, settings.agent_state_dir)
