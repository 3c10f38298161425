"""Commands as processes that start in an instant: forked from one that has imported everything already.

A command is a process of its own all the same, with its own environment, directory, descriptors and signals, and a
child of whoever asked. What `exec` alone could show (the console script, what an import costs) is asked elsewhere.
Linux only; `available` is false elsewhere, and where EXECUTE is set (a coverage that follows `exec` and no fork).
"""

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.constants import Constants, replace_constants

EXECUTE = "AKOSHA_TESTS_EXECUTE"

_SUBREAPER = 36
_MESSAGE_BYTES = 2**20
_HEAVY = (
    "agent.__main__", "agent.entrypoints.cli.app", "agent.entrypoints.cli.run", "agent.entrypoints.cli.sync",
    "agent.entrypoints.cli.status", "agent.entrypoints.cli.events", "agent.entrypoints.cli.consume",
    "agent.entrypoints.cli.memories", "agent.entrypoints.cli.react",
    "agent.adapters.nats.bus", "aioboto3", "httpx2", "isal.isal_zlib", "watchfiles",
)  # fmt: skip


def available() -> bool:
    return sys.platform == "linux" and not os.environ.get(EXECUTE)


class Forked(subprocess.Popen[str]):
    """A process that is there already, as `Popen` has it."""

    def __init__(self, pid: int, args: Sequence[str], pipes: Mapping[str, IO[str] | None]) -> None:
        self.args, self.pid, self.returncode = list(args), pid, None
        self.stdin, self.stdout, self.stderr = (pipes[name] for name in ("stdin", "stdout", "stderr"))
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._input, self._communication_started, self._sigint_wait_secs = None, False, 0.25


class Zygote:
    """The process to fork from, and the way to ask it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def start(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        pipes: Mapping[str, object],
        constants: Constants,
    ) -> "Forked":
        """Start a command; `pipes` are as Popen's stdin, stdout and stderr. What goes over PIPE is text."""
        given, ends, kept = [], {}, []
        for name in ("stdin", "stdout", "stderr"):
            theirs, ends[name] = _end(pipes.get(name), name == "stdin")
            given.append(theirs)
            if theirs > 2 and theirs != _number(pipes.get(name)):
                kept.append(theirs)
        about = json.dumps({"args": list(args), "env": dict(env), "cwd": str(cwd), "constants": constants}).encode()
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._ours, [about], given)
                pid = int(self._ours.recv(64))
            finally:
                _adopt(False)
        for descriptor in kept:
            os.close(descriptor)
        return Forked(pid, args, ends)

    def close(self) -> None:
        self._ours.close()
        self._process.wait()


def _number(given: object) -> int | None:
    if isinstance(given, int):
        return given
    return given.fileno() if isinstance(given, (io.IOBase, socket.socket)) else None


def _end(given: object, reading: bool) -> tuple[int, IO[str] | None]:
    """Return the child's descriptor, and our end of a pipe."""
    if given == subprocess.PIPE:
        read, write = os.pipe()
        if reading:
            return read, os.fdopen(write, "w")
        return write, os.fdopen(read)
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    number = _number(given)
    assert number is not None, given
    return number, None


def _adopt(value: bool) -> None:
    """Be the parent of processes whose own has ended, for as long as this is on."""
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, int(value), 0, 0, 0)


_zygotes: dict[int, Zygote] = {}


def zygote() -> Zygote:
    """Return this process's own."""
    found = _zygotes.get(os.getpid())
    if found is None:
        found = _zygotes[os.getpid()] = Zygote()
    return found


# ---------------------------------------------------------------------------------------------- in the process itself


def main() -> None:
    """Fork for each message, until whoever asks is gone."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MESSAGE_BYTES, 3)
        if not message:
            return
        # The one in between ends at once: then who asked is the parent, and is told no sooner.
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            command = os.fork()
            if command:
                os.write(tell, str(command).encode())
                os._exit(0)
            os.close(told)
            os.close(tell)
            break
        os.waitpid(between, 0)
        asked.send(os.read(told, 64))
        os.close(told)
        os.close(tell)
        for descriptor in descriptors:
            os.close(descriptor)
    asked.close()
    _become(json.loads(message), descriptors)


def _become(about: Mapping, descriptors: Sequence[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        if descriptor > 2:
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(about["env"])
    os.chdir(about["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = about["args"]
    sys.modules["__main__"].__package__ = None  # it says how the program was called
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    replace_constants(about["constants"])
    sys.modules["agent.__main__"].main()


if __name__ == "__main__":
    main()
