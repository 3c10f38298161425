"""Processes that start in an instant: forked from one that has imported everything already.

Each is a process of its own all the same, with its own environment, directory, descriptors and signals, and a child of
the process that asks for it: a command of the agent, a program of the tests, or a child that either starts by asyncio.
What `exec` alone can show (the console script, the interpreter's options, what an import costs) has its own tests.
Linux only; `available` is false elsewhere, and where EXECUTE is set (a coverage that follows `exec` and no fork).
"""

import asyncio.unix_events
import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import agent
from tests.support import botocore_data

EXECUTE = "AKOSHA_TESTS_EXECUTE"

COMMAND = str(Path(sys.executable).with_name("akosha-agent"))

_SUBREAPER = 36
_MESSAGE_BYTES = 2**20
_TITLE_BYTES = 1000
_HEAVY = ("_strptime", "aioboto3", "aiohttp.web", "duckdb", "httpx2", "isal.isal_zlib", "mcp", "tzlocal", "watchfiles")
_ROOT = Path(__file__).parents[2]
_LIGHT = {"events", "status", "config", "hook", "--help", "--version"}
"""Commands of the agent that start no process."""


def available() -> bool:
    return sys.platform == "linux" and not os.environ.get(EXECUTE)


def can_run(command: Sequence[object]) -> bool:
    """Say whether a command is one of ours, or Python with a file or a module to run."""
    words = [str(word) for word in command]
    return available() and bool(words) and (words[0] == COMMAND or _program(words) is not None)


class Forked(subprocess.Popen[Any]):
    """A process that is there already, as `Popen` has it."""

    def __init__(self, pid: int, args: Sequence[str], pipes: Mapping[str, IO[Any] | None], *, text: bool) -> None:
        self.args, self.pid, self.returncode = list(args), pid, None
        self.stdin, self.stdout, self.stderr = (pipes[name] for name in ("stdin", "stdout", "stderr"))
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._input, self._communication_started, self._sigint_wait_secs = None, False, 0.25
        self.text_mode, self.encoding, self.errors = text, None, None


class Zygote:
    """The way to ask the process to fork from."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours, self._lock = ours, threading.Lock()

    def start(
        self,
        args: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: object = None,
        text: bool = True,
        start_new_session: bool = False,
        **pipes: object,
    ) -> "Forked":
        """Start a command, as Popen does."""
        words = [str(word) for word in args]
        given, ends, kept = [], {}, []
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            theirs, ends[name] = _end(pipes.get(name), number, given, text=text)
            given.append(theirs)
            if pipes.get(name) in (subprocess.PIPE, subprocess.DEVNULL):
                kept.append(theirs)
        about = {"args": words, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        message = json.dumps(about | {"session": start_new_session}).encode()
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._ours, [message], given)
                pid = int(self._ours.recv(64))
            finally:
                _adopt(False)
        for descriptor in kept:
            os.close(descriptor)
        return Forked(pid, words, ends, text=text)


def _end(given: object, number: int, before: Sequence[int], *, text: bool) -> tuple[int, IO[Any] | None]:
    """Return the child's descriptor, and our end of a pipe."""
    if given == subprocess.PIPE:
        read, write = os.pipe()
        theirs, ours = (read, write) if number == 0 else (write, read)
        return theirs, os.fdopen(ours, ("w" if number == 0 else "r") + ("" if text else "b"))
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if given == subprocess.STDOUT:
        return before[1], None
    if isinstance(given, int):
        return given, None
    if given is None:
        return number, None
    assert isinstance(given, (io.IOBase, socket.socket)), given
    return given.fileno(), None


def _adopt(value: bool) -> None:
    """Be the parent of processes whose own has ended, for as long as this is on."""
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, int(value), 0, 0, 0)


_zygotes: dict[int, Zygote] = {}


def zygote() -> Zygote:
    """Return this process's own."""
    found = _zygotes.get(os.getpid())
    if found is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), " " * _TITLE_BYTES],
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
            )
        found = _zygotes[os.getpid()] = Zygote(ours)
        atexit.register(process.wait)
        atexit.register(ours.close)
    return found


def popen(command: Sequence[object], **how: Any) -> subprocess.Popen[Any]:
    """Start a command: forked where that can be."""
    if can_run(command) and how.keys() <= _KNOWN and _own_modules(how.get("env")):
        return zygote().start(command, **{"text": False} | how)
    return subprocess.Popen(command, **how)


def run(
    command: Sequence[object],
    *,
    input: str | bytes | None = None,  # noqa: A002 - as subprocess has it
    capture_output: bool = False,
    check: bool = False,
    timeout: float | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command to its end, as `subprocess.run` does: forked where that can be."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        how["stdin"] = subprocess.PIPE
    with popen(command, **how) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _own_modules(env: Mapping[str, str] | None) -> bool:
    return (os.environ if env is None else env).get("PYTHONPATH", str(_ROOT)) == str(_ROOT)


_KNOWN = {"stdin", "stdout", "stderr", "env", "cwd", "text", "start_new_session"}
_UNSET = (None, False, 0, ())


def fork_children() -> None:
    """Let asyncio fork the children of this process that are Python programs of ours."""

    def start(args: Any, **how: Any) -> subprocess.Popen[Any]:
        plain = {"shell": False, "universal_newlines": False, "bufsize": 0}
        if plain.items() <= how.items() and isinstance(args, (list, tuple)):
            return popen(
                args, **{name: value for name, value in how.items() if name not in plain and value not in _UNSET}
            )
        return subprocess.Popen(args, **how)

    asyncio.unix_events.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})


# ---------------------------------------------------------------------------------------------- in the process itself


def main() -> None:
    """Import what is heavy, then serve."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    # An early interrupt waits until the command can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    for name in (*_HEAVY, *(module.name for module in pkgutil.walk_packages(agent.__path__, "agent."))):
        importlib.import_module(name)
    botocore_data.share()
    gc.collect()
    gc.freeze()
    serve(asked)


def serve(asked: socket.socket) -> None:
    """Fork for each message, until whoever asks is gone; return in what was forked, when it has come to its end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        # The one in between ends at once: then who asked is the parent, and is told no sooner.
        reported, tell = os.pipe()
        between = os.fork()
        if between == 0:
            command = os.fork()
            if command:
                os.write(tell, str(command).encode())
                os._exit(0)
            os.close(reported)
            os.close(tell)
            break
        os.waitpid(between, 0)
        asked.send(os.read(reported, 64))
        os.close(reported)
        os.close(tell)
        for descriptor in descriptors:
            os.close(descriptor)
    asked.close()
    _become(json.loads(message), descriptors)


def _become(about: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    words = about["args"]
    program = _program(words)
    if words[0] != COMMAND or not _LIGHT & set(words[1:2]):
        _bear_a_zygote(descriptors)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in {descriptor for descriptor in descriptors if descriptor > 2}:
        os.close(descriptor)
    _give_title(words)
    if about["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(about["env"])
    os.chdir(about["cwd"])
    sys.argv = words if program is None else [program[1], *words[words.index(program[1]) + 1 :]]
    sys.modules["__main__"].__package__ = None  # it says how the program was called
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    _run(program)


def _give_title(words: Sequence[str]) -> None:
    """Show the command to those who look at the processes: in the memory of this process's own arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    title = "\0".join(words).encode()[: end - start - 1]
    if start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title, len(title))


def _bear_a_zygote(descriptors: Sequence[int]) -> None:
    """Fork this process's own zygote, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        for descriptor in descriptors:
            os.close(descriptor)
        serve(theirs)
    theirs.close()
    _zygotes.clear()
    _zygotes[os.getpid()] = Zygote(ours)
    fork_children()


def _program(words: Sequence[str]) -> tuple[Callable[[str], object], str] | None:
    """Return how to run what Python is to run, and its name; None: nothing that we can."""
    rest = [*words[1:]]
    if words[0] != sys.executable:
        return None
    if rest[:1] == ["-P"]:
        rest.pop(0)
    if rest[:1] == ["-m"] and len(rest) > 1:
        return _run_module, rest[1]
    return (_run_file, rest[0]) if rest and rest[0].endswith(".py") else None


def _run_module(name: str) -> object:
    module = sys.modules.get(name if name != "agent" else "agent.__main__")
    if module is not None and hasattr(module, "main"):
        return module.main()
    return runpy.run_module(name, run_name="__main__", alter_sys=True) and None


def _run_file(name: str) -> object:
    return runpy.run_path(name, run_name="__main__") and None


def _run(program: tuple[Callable[[str], object], str] | None) -> None:
    """Come to an end as the interpreter does, but for taking apart all that was imported."""
    code: object = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        code = program[0](program[1]) if program else sys.modules["agent.__main__"].main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main()
