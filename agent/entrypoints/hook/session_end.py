"""`hook session-end`: notify the agent that a session has ended, in little more time than Python takes to start.

A child process writes a durable note into the spool, then sends the event to the running agent. The hook waits at most
LIMIT_SECONDS for it: a disk may take seconds to sync, and the child completes the note in the background.

Imports dominate the run time. Therefore this uses C modules of the standard library instead of `json`, `socket` and
`signal`, and only `note` from this project.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys
import time
from select import select

from agent.entrypoints.hook import note

STDIN_SECONDS = 0.06
"""Time limit for reading standard input; Claude Code has written it before Python has started."""
STDIN_BYTES = 256 * 1024
NOTE_SECONDS = 0.12
"""How long the hook waits for the note to be durable; the child continues after that."""
NOTIFY_SECONDS = 0.05
NOTIFY_WITHOUT_NOTE_SECONDS = 5.0
"""How long the child tries to reach the agent if the note could not be written. The hook does not wait for it."""
CHILD_END_SECONDS = 0.01
"""How long the hook waits for the child to exit after the note is written."""
LIMIT_SECONDS = 0.17
CHILD_LIMIT_SECONDS = 60.0

OPTIONS = ("--state-dir", "--system-id")
SOCKET = "control.sock"

_DONE = b"+"
_STREAMS = _STDIN, _STDOUT, _STDERR = 0, 1, 2
_LONGEST_ADDRESS = 100
_LONGEST_LINE = 1000
_STATUS = slice(8, 12)
"""Position of the status code in `HTTP/1.1 202 Accepted`."""


def main(arguments: list[str]) -> None:
    """Notify the agent of the session's end, and always exit with 0. Never returns; prints nothing to standard output.

    If the note could not be written and the agent could not be reached in time, print one line to standard error.
    """
    try:
        _open_standard_streams()
        reading, writing = os.pipe()
        try:
            child = os.fork()
        except OSError:  # fork failed: do the work in this process, within the limit
            _limit(LIMIT_SECONDS)
            _record_and_notify(arguments, writing)
            child = -1
        if child == 0:
            _signal.setitimer(_signal.ITIMER_REAL, CHILD_LIMIT_SECONDS)
            _detach()
            _record_and_notify(arguments, writing)
        else:  # the child does everything that may take long
            _limit(LIMIT_SECONDS)
            os.close(writing)
            _await_child(reading, time.monotonic() + NOTE_SECONDS)
    except Exception as error:  # noqa: BLE001 - the hook must never fail
        _report(f"could not be recorded: {str(error) or type(error).__name__}")
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    """Exit with 0 after this time."""
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(0))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def _record_and_notify(arguments: list[str], writing: int) -> None:
    """Read the input, then write the note and notify the agent; `writing` receives a `+`, or the error."""
    try:
        given, options = read_input(_STDIN), read_options(arguments)
        if "--state-dir" not in options and note.settings_have_options(os.environ):
            # Loading the settings takes longer than the hook may: it ends now, and the note follows.
            os.write(writing, _DONE)
            os.close(writing)
            writing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            options = note.options_of_settings(os.environ) | options
        state = note.state_directory(options.get("--state-dir", ""), os.environ)
        system = note.system_id(state, options.get("--system-id", ""), os.environ)
        name, event = note.session_ended(system, given.get("session_id"), given.get("reason"))
        deliver(state, name, event, writing)
    except Exception as error:  # noqa: BLE001 - as above
        os.write(writing, f"could not be recorded: {str(error) or type(error).__name__}".encode("utf-8", "replace"))


def _open_standard_streams() -> None:
    """Open /dev/null as each closed standard stream, so that no other file gets its descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STREAMS:
        pass
    os.close(descriptor)


def _detach() -> None:
    """Start a new session, so that closing the terminal does not end this process, and close the output streams,
    whose reader may wait for EOF.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (_STDOUT, _STDERR):
        os.dup2(null, stream)
    os.setsid()


def _await_child(reading: int, deadline: float) -> None:
    """Wait for the child's result, then at most CHILD_END_SECONDS for its exit."""
    result = b""
    while select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
        more = os.read(reading, 4096)
        result += more
        if not more and result != _DONE:
            _report(result.decode("utf-8", "replace") or "could not be recorded")
        if not more:
            break
        if result == _DONE:
            deadline = min(deadline, time.monotonic() + CHILD_END_SECONDS)


def _report(problem: str) -> None:
    """Write one line to standard error, unless that would block."""
    if sys.stderr is not None and select([], [_STDERR], [], 0)[1]:
        line = f"akosha-agent: the end of this session {' '.join(problem.split())}"
        os.write(_STDERR, line.encode("utf-8", "backslashreplace")[:_LONGEST_LINE] + b"\n")


def deliver(state: str, name: str, event: bytes, writing: int) -> None:
    """Write the note and notify the agent; `writing` receives a `+` once one of them has succeeded, or the error."""
    problem = ""
    try:
        note.write_note(state, name, event)
        os.write(writing, _DONE)
    except (OSError, ValueError) as error:
        problem = f"could not be recorded in {state}: {error}"
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
    """Read a JSON object from the descriptor within STDIN_SECONDS; return {} if there is none."""
    data, deadline = b"", time.monotonic() + STDIN_SECONDS
    try:
        while len(data) < STDIN_BYTES and select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            more = os.read(descriptor, 65536)
            data += more
            if not more or (data.rstrip().endswith(b"}") and note.parsed(data)):
                break  # no EOF follows if it is a terminal, or if another process has inherited the pipe
    except OSError:
        pass  # closed, or a directory
    return note.parsed(data)


def notify(state: str, event: bytes, seconds: float) -> bool:
    """Send the event to the running agent within this time; return whether the agent has accepted it."""
    deadline = time.monotonic() + seconds
    request = (
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents+json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(event), event)
    )
    response, directory = b"", -1
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        address = f"{state}/{SOCKET}"
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{directory}/{SOCKET}"
        connection.settimeout(seconds)
        connection.connect(address)
        connection.sendall(request)
        while len(response) < _STATUS.stop and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (more := connection.recv(256)):
                break
            response += more
    except (OSError, ValueError):
        return False
    finally:
        connection.close()
        if directory >= 0:
            os.close(directory)
    return response[_STATUS] == b" 202"
