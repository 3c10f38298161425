"""`hook session-end`: notify the agent that a session has ended, in little more time than Python takes to start.

A child process writes a durable note into the spool, then sends the event to the running agent. The hook itself waits
for neither longer than LIMIT_SECONDS: a disk may take seconds to sync, and the child still writes the note.

Imports dominate the run time: hence the C modules of the standard library instead of `json`, `socket` and `signal`,
and of this project only `note`.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys
import time
from select import select

from agent.entrypoints.hook import note

STDIN_SECONDS = 0.06
"""Limit for reading standard input; Claude Code has written it before Python has started."""
STDIN_BYTES = 256 * 1024
NOTE_SECONDS = 0.12
"""How long the hook waits for the note to be durable; the child goes on without it."""
NOTIFY_SECONDS = 0.05
NOTIFY_WITHOUT_NOTE_SECONDS = 5.0
"""How long the child tries to reach the agent where no note could be written. The hook does not wait for it."""
CHILD_END_SECONDS = 0.01
"""How long the hook waits for the child to end once the note is written."""
LIMIT_SECONDS = 0.17
CHILD_LIMIT_SECONDS = 60.0

OPTIONS = ("--state-dir", "--system-id")
SOCKET = "control.sock"

_DONE = b"+"
_STREAMS = _STDIN, _STDOUT, _STDERR = 0, 1, 2
_LONGEST_ADDRESS = 100
_LONGEST_LINE = 1000
_STATUS = slice(8, 12)
"""Of `HTTP/1.1 202 Accepted`."""


def main(arguments: list[str]) -> None:
    """Notify the agent of the session's end and exit with 0, always. Never returns; prints nothing.

    If by then neither the note could be written nor the agent reached, one line on standard error gives the reason.
    """
    try:
        _open_standard_streams()
        reading, writing = os.pipe()
        try:
            child = os.fork()
        except OSError:  # no process is available: this one does the work, and the limit ends it
            _limit(LIMIT_SECONDS)
            _record_and_notify(arguments, writing)
            child = -1
        if child == 0:
            _signal.setitimer(_signal.ITIMER_REAL, CHILD_LIMIT_SECONDS)
            _detach()
            _record_and_notify(arguments, writing)
        else:  # the child does whatever may take long
            _limit(LIMIT_SECONDS)
            os.close(writing)
            _await_child(reading, time.monotonic() + NOTE_SECONDS)
    except Exception as error:  # noqa: BLE001 - a session's end must never fail
        _report(f"could not be noted: {str(error) or type(error).__name__}")
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    """End this process with 0 after this time, whatever it does."""
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(0))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def _record_and_notify(arguments: list[str], writing: int) -> None:
    """Read the input, then write the note and notify the agent; `writing` receives a `+`, or the error."""
    try:
        given, options = read_input(_STDIN), read_options(arguments)
        state = note.state_directory(options.get("--state-dir", ""), os.environ)
        system = note.system_id(state, options.get("--system-id", ""), os.environ)
        name, event = note.session_ended(system, given.get("session_id"), given.get("reason"))
        deliver(state, name, event, writing)
    except Exception as error:  # noqa: BLE001 - as above
        os.write(writing, f"could not be noted: {str(error) or type(error).__name__}".encode("utf-8", "replace"))


def _open_standard_streams() -> None:
    """Open those of the standard streams that are closed, so that no later descriptor takes their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STREAMS:
        pass
    os.close(descriptor)


def _detach() -> None:
    """Leave the session of the terminal, whose end would end this process, and close the standard streams: their
    reader may wait for their end.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (_STDOUT, _STDERR):
        os.dup2(nothing, stream)
    os.setsid()


def _await_child(reading: int, deadline: float) -> None:
    """Wait for the child's result, and then CHILD_END_SECONDS for its end."""
    result = b""
    while select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
        more = os.read(reading, 4096)
        result += more
        if not more and result != _DONE:
            _report(result.decode("utf-8", "replace") or "could not be noted")
        if not more:
            break
        if result == _DONE:
            deadline = min(deadline, time.monotonic() + CHILD_END_SECONDS)


def _report(problem: str) -> None:
    """Write one line to standard error, if it can be written at once."""
    if sys.stderr is not None and select([], [_STDERR], [], 0)[1]:
        line = f"akosha-agent: the end of this session {' '.join(problem.split())}"
        os.write(_STDERR, line.encode("utf-8", "backslashreplace")[:_LONGEST_LINE] + b"\n")


def deliver(state: str, name: str, event: bytes, writing: int) -> None:
    """Write the note and notify the agent; `writing` receives a `+` once one of both is done, or the error."""
    problem = ""
    try:
        note.write_note(state, name, event)
        os.write(writing, _DONE)
    except (OSError, ValueError) as error:
        problem = f"could not be noted in {state}: {error}"
    notified = notify(state, event, NOTIFY_WITHOUT_NOTE_SECONDS if problem else NOTIFY_SECONDS)
    if problem and notified:
        os.write(writing, _DONE)
    elif problem:
        os.write(writing, problem.encode("utf-8", "backslashreplace"))


def read_options(arguments: list[str]) -> dict[str, str]:
    """Return the options, `--name value` or `--name=value`; other words are ignored."""
    found: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in OPTIONS:
            found[name] = (value if equals else next(waiting, "")).strip()
    return found


def read_input(descriptor: int) -> dict[str, object]:
    """Return the JSON object that can be read within STDIN_SECONDS; {} for anything else."""
    data, deadline = b"", time.monotonic() + STDIN_SECONDS
    try:
        while len(data) < STDIN_BYTES and select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            more = os.read(descriptor, 65536)
            data += more
            if not more or (data.rstrip().endswith(b"}") and note.parsed(data)):
                break  # the other side may stay open: a terminal, or another process that inherited it
    except OSError:
        pass  # closed, or a directory
    return note.parsed(data)


def notify(state: str, event: bytes, seconds: float) -> bool:
    """Send the event to the running agent, within this time; True where it has accepted it."""
    deadline = time.monotonic() + seconds
    request = (
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents+json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(event), event)
    )
    answer, folder = b"", -1
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        address = f"{state}/{SOCKET}"
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder}/{SOCKET}"
        connection.settimeout(seconds)
        connection.connect(address)
        connection.sendall(request)
        while len(answer) < _STATUS.stop and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (more := connection.recv(256)):
                break
            answer += more
    except (OSError, ValueError):
        return False
    finally:
        connection.close()
        if folder >= 0:
            os.close(folder)
    return answer[_STATUS] == b" 202"
