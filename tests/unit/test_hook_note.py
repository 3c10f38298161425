"""The hook reimplements some functions without importing the rest of the project; the results are the same."""

import json
import os
import re
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.spool import MAX_NOTE_BYTES, is_note
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import NamingError
from agent.domain.events import SessionEnded
from agent.domain.naming import sanitise_system_id
from agent.entrypoints.hook import note
from agent.entrypoints.hook.session_end import read_input, read_options
from agent.settings import load

CODEC = CloudEventsCodec()


@settings(max_examples=50)
@given(st.text(max_size=300) | st.none() | st.integers(), st.text(st.characters(), max_size=20))
def test_the_note_is_the_event_as_the_codec_encodes_it(session_id, reason):
    name, data = note.session_ended("my-mac", session_id, reason)
    event = CODEC.decode(data)
    assert isinstance(event, SessionEnded)
    assert event.system_id == "my-mac"
    if isinstance(session_id, str):
        assert event.session_id == session_id[:200]
    assert len(data) < MAX_NOTE_BYTES
    assert json.loads(CODEC.encode(event)) == json.loads(data)
    assert list(json.loads(CODEC.encode(event))) == list(json.loads(data))
    assert is_note(name)
    assert name.startswith(f"{event.time:%Y%m%dT%H%M%S.%f}-")


def test_the_bytes_of_the_note_are_those_of_the_codec():
    _, data = note.session_ended("my-mac", "3f2a", "clear")
    assert re.sub(rb"\.\d{6}\+00:00", b"", CODEC.encode(CODEC.decode(data))) == re.sub(rb"\.\d{6}\+00:00", b"", data)


def test_a_lone_surrogate_is_sent_as_its_escape():
    _, data = note.session_ended("my-mac", "a\udc80", "")
    assert CODEC.decode(data).session_id == "a\\udc80"


def test_event_ids_and_note_names_are_unique():
    made = [note.session_ended("s", "", "") for _ in range(500)]
    assert len({name for name, _ in made}) == len({json.loads(data)["id"] for _, data in made}) == 500


@settings(max_examples=200)
@given(st.text(max_size=120) | st.text("aZ09-_ ./é", max_size=120))
def test_a_name_gives_the_same_system_id_as_in_the_agent(text):
    try:
        expected = sanitise_system_id(text)
    except NamingError:
        expected = ""
    assert note.sanitise(text) == expected


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"HOME": "/home/me"}, id="home"),
        pytest.param({"HOME": "/"}, id="home-is-root"),
        pytest.param({}, id="no-home"),
        pytest.param({"HOME": ""}, id="empty-home"),
        pytest.param({"HOME": "/home/me", "XDG_STATE_HOME": "/var/me"}, id="xdg"),
        pytest.param({"HOME": "/home/me", "XDG_STATE_HOME": "relative"}, id="relative-xdg"),
        pytest.param({"HOME": "/home/me", "AKOSHA_AGENT_STATE_DIR": "/over/there"}, id="set"),
        pytest.param({"HOME": "/home/me", "AKOSHA_AGENT_STATE_DIR": "~/there"}, id="set-from-home"),
        pytest.param({"HOME": "/home/me", "AKOSHA_AGENT_STATE_DIR": " there "}, id="set-relative"),
        pytest.param({"HOME": "/home/me", "AKOSHA_AGENT_STATE_DIR": "  "}, id="set-to-nothing"),
    ],
)
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_state_directory_is_the_one_of_the_settings(variables, platform, monkeypatch):
    for name in ("HOME", "XDG_STATE_HOME", "AKOSHA_AGENT_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = note.state_directory("", os.environ)
    if variables.get("HOME"):
        assert note.state_directory("~/x", os.environ) == f"{variables['HOME'].rstrip('/')}/x"
    assert note.state_directory("/option", os.environ) == "/option"
    if platform == "darwin":
        if "AKOSHA_AGENT_STATE_DIR" in variables:
            return
        from platformdirs.macos import MacOS

        monkeypatch.setattr(note.sys, "platform", "darwin")
        assert Path(note.state_directory("", os.environ)) == Path(MacOS("akosha-agent", appauthor=False).user_state_dir)
        return
    home = Path(variables.get("HOME") or "/nowhere")
    loaded = load(environ=os.environ, cwd=Path.cwd(), home=home)
    assert Path(found) == loaded.settings.agent_state_dir
    if not variables.get("AKOSHA_AGENT_STATE_DIR", "").strip():
        assert Path(found) == platformdirs.user_state_path("akosha-agent", appauthor=False)


@pytest.mark.parametrize(
    ("given_id", "variables", "kept", "expected"),
    [
        pytest.param("my mac", {"AKOSHA_SYSTEM_ID": "no"}, '{"system_id": "no"}', "my-mac", id="option"),
        pytest.param("", {"AKOSHA_SYSTEM_ID": "b"}, '{"system_id": "no"}', "b", id="variable"),
        pytest.param(
            *("", {"AKOSHA_SYSTEM_ID": "b", "SESSION_BUDDY_AKOSHA_SYSTEM_ID": "a.c"}, "", "a-c"), id="own-variable"
        ),
        pytest.param("", {}, '{"agent_id": "00", "system_id": "kept_1"}', "kept_1", id="identity"),
        pytest.param("", {}, '{"system_id": ""}', None, id="identity-without"),
        pytest.param("", {}, '{"system_id": "a\\"b"}', None, id="identity-damaged"),
        pytest.param("", {}, "{", None, id="identity-torn"),
        pytest.param("", {}, None, None, id="never-run"),
    ],
)
def test_the_event_has_the_system_id_of_the_agent_there(tmp_path, given_id, variables, kept, expected):
    if kept is not None:
        (tmp_path / "identity.json").write_text(kept)
    host = sanitise_system_id(os.uname().nodename)
    assert note.system_id(str(tmp_path), given_id, variables) == (expected or host)


def test_options_are_read_in_both_forms_and_unknown_ones_ignored():
    words = ["--state-dir", "/a b", "--new", "--system-id=x", "stray", "--state-dir"]
    assert read_options(words[:-1]) == {"--state-dir": "/a b", "--system-id": "x"}
    assert read_options(words) == {"--state-dir": "", "--system-id": "x"}


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left-open"])
def test_the_input_is_read_even_if_the_writer_does_not_close_it(closed):
    reading, writing = os.pipe()
    os.write(writing, b'\xef\xbb\xbf {"session_id": "a", "n": 1.5e3, "x": [null, {"}": "}"}]}\n')
    if closed:
        os.close(writing)
    assert read_input(reading)["session_id"] == "a"
    os.close(reading)
    if not closed:
        os.close(writing)


def test_the_hook_imports_no_expensive_module():
    """The bench measures the time; this test names the module."""
    import subprocess
    import sys

    code = "import sys; before = set(sys.modules); import agent.__main__, agent.entrypoints.hook.session_end; "
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = {
        "_socket",
        "_json",
        "gc",
        "select",
        "agent",
        "agent.__main__",
        "agent.entrypoints",
        "agent.entrypoints.hook",
    }
    assert set(done.stdout.split()) <= loaded | {
        "agent.entrypoints.hook.note",
        "agent.entrypoints.hook.session_end",
        "_signal",
    }
