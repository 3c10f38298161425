"""The hook with failures of every kind: it exits with 0 at once, and the event is kept if possible.

The time limits of these tests only detect a hang; the bench measures the duration.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from agent.adapters.spool import SpoolDirectory
from agent.adapters.wire import CloudEventsCodec
from tests.support.hook import run_hook
from tests.support.machine import COMMAND

HOOK = ("hook", "session-end", "--state-dir")
INPUT = b'{"session_id": "s-1", "reason": "clear", "hook_event_name": "SessionEnd"}'

AT_ONCE = 15.0
"""Seconds, generous for a busy machine; a hook that hangs takes longer."""


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def run(state, *, prefix=(COMMAND,), **how):
    done = run_hook([*prefix, *HOOK, state], **{"data": INPUT, "timeout": AT_ONCE} | how)
    assert (done.returncode, done.stdout or b"") == (0, b"")
    return done


def notes(state) -> list[dict]:
    return [json.loads(path.read_bytes()) for path in sorted((state / "spool").glob("[!.]*.json"))]


def patched(code: str) -> tuple[str, ...]:
    """Return the hook's command with a patch that `code` applies first."""
    return (sys.executable, "-c", f"{code}\nfrom agent.__main__ import main\nmain()")


@pytest.mark.parametrize(
    ("data", "session"),
    [
        pytest.param(INPUT, "s-1", id="as-documented"),
        pytest.param(b"", "", id="empty"),
        pytest.param(b"\x00\xff\xfe{", "", id="binary"),
        pytest.param(INPUT[:-3], "", id="torn"),
        pytest.param(b'{"session_id": {"a": 7}, "reason": ["x"]}', "", id="other-types"),
        pytest.param(b"[" * 100_000, "", id="deep-list"),
        pytest.param(b'{"a":' * 50_000, "", id="deep-object"),
        pytest.param(b'{"a": "' + b"x" * 3_000_000 + b'"}', "", id="huge"),
        pytest.param(b'{"session_id": "\\ud800\xc3\x28"}', "\\ud800\ufffd(", id="no-unicode"),
    ],
)
async def test_any_input_results_in_a_note_that_the_agent_accepts(state, data, session):
    assert run(state, data=data).stderr == b""
    ((_, event),) = await SpoolDirectory(state / "spool", CloudEventsCodec()).waiting()
    assert event.session_id == session


def test_an_open_stdin_does_not_delay_the_hook(state):
    reading, writing = os.pipe()
    try:
        run(state, stdin=reading)
        os.write(writing, INPUT)
        run(state, stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert [note["data"]["session_id"] for note in notes(state)] == ["", "s-1"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not-kept"])
def test_closed_streams_do_not_matter(tmp_path, state, closed, kept):
    if not kept:
        state.touch()
    words = " ".join(f"'{word}'" for word in (COMMAND, *HOOK, state))
    done = run_hook(["/bin/sh", "-c", f"{words} {closed}; echo $?"], data=INPUT)
    assert done.stdout == b"0\n"
    assert len(notes(state)) == kept
    if not kept:
        assert state.read_bytes() == b""


def test_the_note_is_written_with_an_empty_environment(tmp_path, state):
    run(state, env={})
    done = run_hook([COMMAND, *HOOK[:2]], env={"XDG_STATE_HOME": str(tmp_path)}, data=INPUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len(notes(state)) == len(notes(tmp_path / "akosha-agent")) == 1


def test_the_note_is_written_from_a_working_directory_that_was_removed(tmp_path, state):
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    removing = ["/bin/sh", "-c", 'rmdir "$PWD" && exec "$0" "$@"']
    done = run_hook([*removing, COMMAND, *HOOK, state], data=INPUT, cwd=worktree)
    assert (done.returncode, done.stderr, len(notes(state))) == (0, b"", 1)


def test_created_files_are_private(state):
    run(state)
    modes = {path.stat().st_mode & 0o777 for path in (state, state / "spool")}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in (state / "spool").iterdir()} == {0o600}


LONG_LIMITS = "from agent.entrypoints.hook import session_end as s\ns.NOTE_SECONDS = s.LIMIT_SECONDS = 4"
"""For tests of the hook's message: on a busy machine it could exit before its child reports the error."""

RESTRICTED = {
    "a-file": "",
    "read-only": "from tests.faults.restricted import drop_privileges\ndrop_privileges()",
    "full": "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))",
}


@pytest.mark.parametrize("how", RESTRICTED)
def test_a_note_that_cannot_be_written_is_one_error_line(state, how):
    if how == "a-file":
        state.write_text("a file")
    else:
        (state / "spool").mkdir(parents=True)
        (state / "spool").chmod(0o500 if how == "read-only" else 0o700)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = run(state, prefix=patched(f"{LONG_LIMITS}\n{RESTRICTED[how]}"), env=environ).stderr.decode()
    assert line.startswith(f"akosha-agent: the end of this session could not be recorded in {state}: ")
    assert line.count("\n") == 1
    assert how == "a-file" or list((state / "spool").iterdir()) == []


class ControlSocket:
    """A control socket that sends one response and keeps the request."""

    def __init__(self, state: Path, answer: bytes) -> None:
        self.received = b""
        self._answer, self._socket = answer, socket.socket(socket.AF_UNIX)
        state.mkdir(parents=True, exist_ok=True)
        folder = os.open(state, os.O_RDONLY)
        self._socket.bind(f"/proc/self/fd/{folder}/control.sock")
        os.close(folder)
        self._socket.listen(1)
        self._thread = threading.Thread(target=self._serve, name="control")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(AT_ONCE)
        self._socket.close()

    def _serve(self) -> None:
        caller, _ = self._socket.accept()
        with caller:
            caller.settimeout(AT_ONCE)
            while b"}}" not in self.received:
                self.received += caller.recv(65536)
            with suppress(ConnectionError):  # the hook's child waits for the answer for a short time only
                caller.sendall(self._answer)


ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize("deep", [False, True], ids=["short-path", "long-path"])
def test_the_running_agent_receives_the_event_of_the_note(tmp_path, deep):
    state = tmp_path.joinpath(*["a-very-long-name-of-a-directory"] * 5) if deep else tmp_path / "s"
    with ControlSocket(state, ACCEPTED) as control:
        run(state)
    head, _, body = control.received.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert [json.loads(body)] == notes(state)


@pytest.mark.parametrize(
    ("answer", "lines"), [(ACCEPTED, 0), (b"HTTP/1.1 409 Conflict\r\n\r\n", 1)], ids=["taken", "refused"]
)
def test_a_running_agent_accepts_an_event_whose_note_cannot_be_written(state, answer, lines):
    with ControlSocket(state, answer):
        (state / "spool").touch()
        assert run(state, prefix=patched(LONG_LIMITS)).stderr.count(b"\n") == lines


@pytest.mark.parametrize("crowded", [False, True], ids=["silent", "crowded"])
def test_a_silent_agent_does_not_delay_the_hook(tmp_path, crowded):
    state = tmp_path / "s"
    state.mkdir()
    callers = []
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(state / "control.sock"))
        control.listen(0)
        while crowded:
            callers.append(socket.socket(socket.AF_UNIX))
            callers[-1].setblocking(False)
            if callers[-1].connect_ex(str(state / "control.sock")):
                break
        assert run(state).stderr == b""
        for caller in callers:
            caller.close()
    assert len(notes(state)) == 1


def test_a_stale_socket_is_ignored(tmp_path):
    state = tmp_path / "s"
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(state / "control.sock"))
    assert run(state).stderr == b""
    assert len(notes(state)) == 1


def gated(gate: Path) -> tuple[str, ...]:
    """Return the hook's command on a disk whose fsync waits until the file `gate` exists."""
    wait = f"    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)"
    return patched(f"import os, time\nreal = os.fsync\ndef slow(fd):\n{wait}\n    real(fd)\nos.fsync = slow")


def await_note(state: Path) -> None:
    deadline = time.monotonic() + AT_ONCE
    while not notes(state):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_slow_disk_does_not_delay_the_hook_and_the_note_is_written(tmp_path, state):
    assert run(state, prefix=gated(tmp_path / "gate"), to_the_end=False).stderr == b""
    assert notes(state) == []
    (tmp_path / "gate").touch()
    await_note(state)


def test_a_closing_terminal_ends_the_hook_but_not_the_note(tmp_path, state):
    """The process group receives SIGHUP once the child has started; the child still writes the note."""
    (state / "spool").mkdir(parents=True)
    with subprocess.Popen(
        [*gated(tmp_path / "gate"), *HOOK, str(state)], stdin=subprocess.DEVNULL, start_new_session=True
    ) as hook:
        deadline = time.monotonic() + AT_ONCE
        while not list((state / "spool").iterdir()):  # the draft
            assert time.monotonic() < deadline
        os.killpg(hook.pid, signal.SIGHUP)
    assert notes(state) == []
    (tmp_path / "gate").touch()
    await_note(state)


FAILS, HANGS = "raise OSError('no')", "import time; time.sleep(30)"


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        *(pytest.param(name, FAILS, id=f"{name}-fails") for name in ("os.pipe", "os.urandom", "time.time_ns")),
        *(pytest.param(name, HANGS, id=f"{name}-hangs") for name in ("os.urandom", "os.uname", "time.time_ns")),
        pytest.param("os.setsid", "raise MemoryError", id="child"),
    ],
)
def test_the_hook_exits_0_if_a_call_hangs_or_fails(state, broken, how):
    module, _, name = broken.partition(".")
    code = f"import {module}\ndef broken(*_):\n    {how}\n{module}.{name} = broken"
    limits = LONG_LIMITS if how != HANGS else ""
    message = run(state, prefix=patched(f"{limits}\n{code}"), to_the_end=False).stderr.decode()
    assert message.startswith("akosha-agent: the end of this session could not be recorded") is (how != HANGS)
    assert message.count("\n") == (how != HANGS)


def test_without_a_child_process_the_hook_writes_the_note(state):
    run(state, prefix=patched("import os\ndef broken():\n    raise BlockingIOError(11, 'no more')\nos.fork = broken"))
    assert len(notes(state)) == 1
