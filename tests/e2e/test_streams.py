"""Commands whose output is ASCII only, full or closed; and messages that are printed only once."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.machine import COMMAND, Machine

EACH = [
    ("status",),
    ("sync", "--json"),
    ("uploads",),
    ("verify",),
    ("prune", "--dry-run"),
    ("memories",),
    ("events",),
    ("config",),
    ("doctor",),
    ("hook", "status"),
    ("service", "status"),
    ("--version",),
]
WITHOUT_DIRECTORIES = ("service", "--version")
CLOSED = 128 + signal.SIGPIPE
FULL = Path("/dev/full")


def _has_directory_options(words):
    return words[0] not in WITHOUT_DIRECTORIES


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A machine with an upload and directory names that are not ASCII."""
    machine = Machine(tmp_path_factory.mktemp("häuschen"))
    machine.data = machine.data.rename(machine.data.with_name("Dätä-…"))
    machine.write(commits=2, entities=1)
    machine.sync()
    return machine


@pytest.mark.parametrize("words", [("status",), ("uploads",), ("doctor", "--json"), ("events", "--json")], ids=" ".join)
def test_an_ascii_stream_gets_other_characters_escaped(machine, words):
    done = machine.call(*words, prefix=["env", "PYTHONIOENCODING=ascii", COMMAND])
    assert ("Traceback" in done.err, "crashed" in done.err, bool(done.out)) == (False, False, True)
    if words == ("status",):
        assert r"D\u00e4t\u00e4-\u2026" in done.out
    elif words[0] == "doctor":
        assert str(machine.data) in json.dumps(done.json, ensure_ascii=False)
    elif words[0] == "events":
        assert [json.loads(line)["specversion"] for line in done.out.splitlines()]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", EACH, ids=" ".join)
def test_an_unwritable_standard_output_is_one_error_line_and_exit_1(machine, words):
    with FULL.open("w") as full:
        done = machine.call(*words, stdout=full, directories=_has_directory_options(words))
    assert done.code == 1
    assert done.err.splitlines()[-1:] == ["akosha-agent: standard output cannot be written: No space left on device"]
    assert len([line for line in done.err.splitlines() if "standard output" in line]) == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", EACH, ids=" ".join)
def test_a_closed_pipe_ends_a_command_silently(machine, words):
    reader, writer = os.pipe()
    os.close(reader)
    done = machine.call(*words, stdout=writer, directories=_has_directory_options(words))
    os.close(writer)
    assert (done.code, done.err) == (CLOSED, "")


def test_following_events_ends_when_the_pipe_closes(machine):
    reader, writer = os.pipe()
    with machine.started("events", "--follow", "--json", stdout=writer) as following:
        os.close(writer)
        with os.fdopen(reader) as shown:
            assert json.loads(shown.readline())["type"].startswith("akosha.sync.")
        machine.write(commits=3)
        machine.sync()
        assert following.end().code == CLOSED


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_an_unwritable_standard_error_changes_no_exit_status(machine):
    with FULL.open("w") as full:
        assert machine.call("sync", "--method", "nonsense", stderr=full).code == 2
        assert machine.call("uploads", "show", "20000101_000000_nobody", stderr=full).code == 1


# --------------------------------------------------------------------------------------------------- one message, once


def test_a_failed_sync_prints_its_message_once_and_logs_only_with_v(machine, tmp_path):
    other = Machine(tmp_path / "other", cloud_endpoint=None, agent_log_level="DEBUG")
    other.write(commits=1)
    done = other.call("sync")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 2)
    assert "akosha_cloud_bucket" in done.err
    for where in (("sync", "-v"), ("-v", "sync")):
        loud = other.call(*where)
        events = [json.loads(line)["event"] for line in loud.err.splitlines() if line.startswith("{")]
        assert "sync_failed" in events
        assert loud.code == 1


def test_a_warning_about_a_setting_is_one_line(machine, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("akosha_chunk_size: 7\n")
    for words in (("status",), ("config",), ("sync", "--json")):
        done = machine.call(*words, "--settings", str(file))
        (line,) = done.err.splitlines()
        assert line.startswith("warning: ")
        assert "akosha_chunk_size" in line
