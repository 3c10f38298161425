"""Starts Python processes quickly, by forking a process that has already imported everything (the zygote).

Each is a separate process with its own environment, directory, descriptors and signals, and a child of the process that
starts it: a command of the agent, a program of the tests, or a child that either of them starts by asyncio. Other tests
cover what only `exec` shows (the console script, the interpreter's options, import times). Linux only; `available` is
false elsewhere, and if EXECUTE is set (for coverage, which follows `exec` but not `fork`).
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
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import agent
from tests.support import botocore_data, session_buddy

EXECUTE = "AKOSHA_TESTS_EXECUTE"

COMMAND = str(Path(sys.executable).with_name("akosha-agent"))

_CLONE3, _CLONE_PARENT = 435, 0x8000
_MADV_COLLAPSE, _HUGE_PAGE = 25, 2**21
_MESSAGE_BYTES = 2**20
_TITLE_BYTES = 1000
_HEAVY = ("_strptime", "aiobotocore.session", "aiohttp.web", "duckdb", "httpx2", "isal.isal_zlib", "mcp", "tzlocal")
_ROOT = Path(__file__).parents[2]
_NOWHERE = Path("/nowhere")
_LIGHT = {"events", "status", "config", "hook", "--help", "--version"}
"""Commands of the agent that start no child processes."""
_CHILDLESS = {"agent.adapters.duckdb.child", "agent.adapters.patches.child", session_buddy.__file__}
"""Other programs that start none: they need no zygote of their own."""


def available() -> bool:
    return sys.platform == "linux" and not os.environ.get(EXECUTE)


def can_run(command: Sequence[object]) -> bool:
    """Return whether a command is `akosha-agent`, or Python with a file, module or code to run."""
    words = [str(word) for word in command]
    return available() and bool(words) and (words[0] == COMMAND or _program(words) is not None)


class Forked(subprocess.Popen[Any]):
    """A `Popen` of a process that was forked by the zygote."""

    def __init__(self, pid: int, args: Sequence[str], pipes: Mapping[str, IO[Any] | None], *, text: bool) -> None:
        self.args, self.pid, self.returncode = list(args), pid, None
        self.stdin, self.stdout, self.stderr = (pipes[name] for name in ("stdin", "stdout", "stderr"))
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._input, self._communication_started, self._sigint_wait_secs = None, False, 0.25
        self.text_mode, self.encoding, self.errors = text, None, None


class Zygote:
    """The connection to the process that forks."""

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
        """Start a command, like Popen."""
        words = [str(word) for word in args]
        passed, ends, opened = [], {}, []
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            theirs, ends[name] = _end(pipes.get(name), number, passed, text=text)
            passed.append(theirs)
            if pipes.get(name) in (subprocess.PIPE, subprocess.DEVNULL):
                opened.append(theirs)
        order = {"args": words, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        message = json.dumps(order | {"session": start_new_session}).encode()
        with self._lock:
            socket.send_fds(self._ours, [message], passed)
            pid = int(self._ours.recv(64))
        for descriptor in opened:
            os.close(descriptor)
        return Forked(pid, words, ends, text=text)


def _end(given: object, number: int, before: Sequence[int], *, text: bool) -> tuple[int, IO[Any] | None]:
    """Return the child's descriptor, and this process's end of a pipe."""
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


_zygotes: dict[int, Zygote] = {}


def zygote() -> Zygote:
    """Return this process's zygote; start it at the first call."""
    existing = _zygotes.get(os.getpid())
    if existing is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), " " * _TITLE_BYTES],
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
            )
        existing = _zygotes[os.getpid()] = Zygote(ours)
        atexit.register(process.wait)
        atexit.register(ours.close)
    return existing


def popen(command: Sequence[object], **how: Any) -> subprocess.Popen[Any]:
    """Start a command, by forking if possible."""
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
    """Run a command to its end, like `subprocess.run`, by forking if possible."""
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
    """Make asyncio start this process's children by forking, if `can_run` allows it."""

    def start(args: Any, **how: Any) -> subprocess.Popen[Any]:
        plain = {"shell": False, "universal_newlines": False, "bufsize": 0}
        if plain.items() <= how.items() and isinstance(args, (list, tuple)):
            return popen(
                args, **{name: value for name, value in how.items() if name not in plain and value not in _UNSET}
            )
        return subprocess.Popen(args, **how)

    asyncio.unix_events.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})


# ------------------------------------------------------------------------------------------------- in the zygote


def main() -> None:
    """Import the modules that are slow to import, then serve."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    # An early interrupt is delivered when the command can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    gc.disable()
    for name in (*_HEAVY, *(module.name for module in pkgutil.walk_packages(agent.__path__, "agent."))):
        importlib.import_module(name)
    botocore_data.share()
    _warm_up()
    gc.collect()
    gc.freeze()
    gc.enable()
    _use_huge_pages()
    serve(requests)


def _warm_up() -> None:
    """Fill caches that every process would fill: of DuckDB's parser, of the command line and of the settings."""
    import duckdb

    from agent.settings import load

    with duckdb.connect(":memory:", config={"threads": 1}) as engine:  # without threads: this process forks
        engine.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        sys.modules["agent.entrypoints.cli.app"].app(["sync", "--help"])
    load(environ={}, cwd=_NOWHERE, home=_NOWHERE)


def serve(requests: socket.socket) -> None:
    """Fork and run a command for each message, until the other end closes. Ends the process."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, 3)
        except ConnectionResetError:  # the other process was killed before it read an answer
            os._exit(0)
        if not message:
            os._exit(0)
        pid = _fork_sibling()
        if not pid:
            break
        requests.send(str(pid).encode())
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    _run_order(json.loads(message), descriptors)


def _fork_sibling() -> int:
    """Fork, but make the new process a child of this process's parent, which can then wait for it.

    Only for a process with one thread: the C library does not know of the fork.
    """
    clone_args = (ctypes.c_uint64 * 8)(_CLONE_PARENT)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None).syscall(_CLONE3, clone_args, ctypes.sizeof(clone_args))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    assert pid >= 0, "clone3 failed"
    return pid


def _use_huge_pages() -> None:
    """Move this process's memory into huge pages, where the kernel can: a fork then takes half the time."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *_ = line.split()
        if (permissions, inode) == ("rw-p", "0"):
            first, end = (int(address, 16) for address in addresses.split("-"))
            first, end = -(-first // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
            if end > first:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_COLLAPSE)


def _run_order(order: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    words = order["args"]
    program = _program(words)
    if not (_LIGHT if words[0] == COMMAND else _CHILDLESS) & {*words[1:4]}:
        _fork_zygote(descriptors)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in {descriptor for descriptor in descriptors if descriptor > 2}:
        os.close(descriptor)
    _set_title(words)
    if order["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = words if program is None else [program[1], *words[words.index(program[1]) + 1 :]]
    sys.modules["__main__"].__package__ = None  # usage texts derive the program name from it
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    _run(program)


def _set_title(words: Sequence[str]) -> None:
    """Show the command in process listings, by overwriting the memory of this process's arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    title = "\0".join(words).encode()[: end - start - 1]
    if start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title, len(title))


def _fork_zygote(descriptors: Sequence[int]) -> None:
    """Fork a zygote for this process's own children; it ends with this process."""
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
    """Return how to run a Python command's module, file or code, and which; None if it has another form."""
    rest = [*words[1:]]
    if words[0] != sys.executable:
        return None
    if rest[:1] == ["-P"]:
        rest.pop(0)
    if rest[:1] == ["-m"] and len(rest) > 1:
        return _run_module, rest[1]
    if rest[:1] == ["-c"] and len(rest) > 1:
        return _run_code, rest[1]
    return (_run_file, rest[0]) if rest and rest[0].endswith(".py") else None


def _run_module(name: str) -> object:
    module = sys.modules.get(f"{name}.__main__") or sys.modules.get(name)
    if module is not None and hasattr(module, "main"):
        return module.main()
    return runpy.run_module(name, run_name="__main__", alter_sys=True) and None


def _run_code(code: str) -> object:
    sys.argv[0] = "-c"
    return exec(code, {"__name__": "__main__"})


def _run_file(name: str) -> object:
    return runpy.run_path(name, run_name="__main__") and None


def _run(program: tuple[Callable[[str], object], str] | None) -> None:
    """Run the program and end like the interpreter, except that modules are not torn down."""
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
