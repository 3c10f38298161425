"""`hook session-end`: tell the agent that a session is over, in little more time than Python takes to start.

The note in the spool comes first, and is durable; then the running agent is poked. A child process does both: a disk
that takes seconds to sync keeps nobody waiting, and the note is kept all the same.

Every import costs more than all that is done here: hence the standard library's C modules in place of `json`, `socket`
and `signal`, and nothing else of this project but the note.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys
import time
from select import select

from agent.entrypoints.hook import note

STDIN_SECONDS = 0.06
"""How long to wait for what Claude Code says; it has said it long before Python has started."""
STDIN_BYTES = 256 * 1024
NOTE_SECONDS = 0.12
"""How long to wait for the note to be durable; after that the child goes on alone."""
POKE_SECONDS = 0.05
LAST_CHANCE_SECONDS = 5.0
"""How long the child goes on poking where no note could be kept. The hook itself does not wait for it."""
POKE_PATIENCE_SECONDS = 0.01
"""How long to wait for the child's end once the note is kept: an agent that takes longer is the child's own affair."""
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
    """Tell of the session's end and exit with 0, whatever happens: this never returns, and prints nothing.

    Where it is plain by then that the event could neither be kept nor told, one line on standard error says why.
    """
    try:
        _fill_holes()
        reading, writing = os.pipe()
        try:
            child = os.fork()
        except OSError:  # no process to be had: what takes long, the limit ends
            _limit(LIMIT_SECONDS)
            _tell(arguments, writing)
            child = -1
        if child == 0:
            _signal.setitimer(_signal.ITIMER_REAL, CHILD_LIMIT_SECONDS)
            _let_go()
            _tell(arguments, writing)
        else:  # all that can take long, on a busy machine too, is the child's
            _limit(LIMIT_SECONDS)
            os.close(writing)
            _hear(reading, time.monotonic() + NOTE_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it is: a session's end must not fail
        _complain(f"could not be noted: {str(error) or type(error).__name__}")
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    """End this process with 0 after so many seconds, whatever it does."""
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(0))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def _tell(arguments: list[str], writing: int) -> None:
    """Do what there is to do, and say into `writing` how it went: a `+`, or why not."""
    try:
        told, options = read_told(_STDIN), read_options(arguments)
        state = note.state_directory(options.get("--state-dir", ""), os.environ)
        system = note.system_id(state, options.get("--system-id", ""), os.environ)
        name, event = note.session_ended(system, told.get("session_id"), told.get("reason"))
        work(state, name, event, writing)
    except Exception as error:  # noqa: BLE001 - as above
        os.write(writing, f"could not be noted: {str(error) or type(error).__name__}".encode("utf-8", "replace"))


def _fill_holes() -> None:
    """Open those of the standard streams that are closed: nothing opened later may be taken for one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STREAMS:
        pass
    os.close(descriptor)


def _let_go() -> None:
    """Let go of the terminal, which takes its own along when it closes, and of what is printed to: who waits for the
    end of that does not wait for us.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (_STDOUT, _STDERR):
        os.dup2(nothing, stream)
    os.setsid()


def _hear(reading: int, deadline: float) -> None:
    """Wait for what the child has to say, and then a moment for its end."""
    heard = b""
    while select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
        said = os.read(reading, 4096)
        heard += said
        if not said and heard != _DONE:
            _complain(heard.decode("utf-8", "replace") or "could not be noted")
        if not said:
            break
        if heard == _DONE:
            deadline = min(deadline, time.monotonic() + POKE_PATIENCE_SECONDS)


def _complain(why: str) -> None:
    """Say on one line what became of the event, where there is somebody to hear it."""
    if sys.stderr is not None and select([], [_STDERR], [], 0)[1]:
        line = f"akosha-agent: the end of this session {' '.join(why.split())}"
        os.write(_STDERR, line.encode("utf-8", "backslashreplace")[:_LONGEST_LINE] + b"\n")


def work(state: str, name: str, event: bytes, writing: int) -> None:
    """Keep the note and poke the agent. Into `writing` goes a `+` once one of both is done, or why not."""
    why = ""
    try:
        note.keep(state, name, event)
        os.write(writing, _DONE)
    except (OSError, ValueError) as error:
        why = f"could not be noted in {state}: {error}"
    if poke(state, event, LAST_CHANCE_SECONDS if why else POKE_SECONDS) and why:
        os.write(writing, _DONE)
    elif why:
        os.write(writing, why.encode("utf-8", "backslashreplace"))


def read_options(arguments: list[str]) -> dict[str, str]:
    """Return the options given, `--name value` or `--name=value`; what is neither is passed over."""
    found: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in OPTIONS:
            found[name] = (value if equals else next(waiting, "")).strip()
    return found


def read_told(descriptor: int) -> dict[str, object]:
    """Return the JSON object that comes out of a descriptor in a moment; {} for anything else, or nothing."""
    data, deadline = b"", time.monotonic() + STDIN_SECONDS
    try:
        while len(data) < STDIN_BYTES and select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            more = os.read(descriptor, 65536)
            data += more
            if not more or (data.rstrip().endswith(b"}") and note.parsed(data)):
                break  # there may be no end, where a terminal or somebody else holds the other side
    except OSError:
        pass  # closed, or a directory: nothing is told
    return note.parsed(data)


def poke(state: str, event: bytes, seconds: float) -> bool:
    """Tell the running agent, in so many seconds at most; True where it has taken the event."""
    deadline = time.monotonic() + seconds
    request = (
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents+json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(event), event)
    )
    answer, folder = b"", -1
    door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        address = f"{state}/{SOCKET}"
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder}/{SOCKET}"
        door.settimeout(seconds)
        door.connect(address)
        door.sendall(request)
        while len(answer) < _STATUS.stop and (left := deadline - time.monotonic()) > 0:
            door.settimeout(left)
            if not (more := door.recv(256)):
                break
            answer += more
    except (OSError, ValueError):
        return False
    finally:
        door.close()
        if folder >= 0:
            os.close(folder)
    return answer[_STATUS] == b" 202"
