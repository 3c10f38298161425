"""Another user of the machine cannot read, list or write what the agent creates, whatever the umask."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.machine import Machine
from tests.support.zygote import COMMAND

OTHER_UID = 65_534
WITHOUT_UMASK = ("/bin/sh", "-c", 'umask 0; exec "$0" "$@"', COMMAND)

TRY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
        except (PermissionError, IsADirectoryError):  # the second: a directory, opened for writing
            continue
        except OSError as error:
            print(path, type(error).__name__)
        else:
            print(path, "opened")
"""
"""Opens each path as another user; prints all that do not fail with PermissionError."""


@pytest.fixture
def machine():
    """A machine in a directory that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Machine(Path(name))


def created(machine: Machine) -> list[Path]:
    """Return everything in the agent's directories, and these."""
    roots = [machine.state, machine.bucket, machine.home / "restored", machine.home / "logs"]
    return [*roots, *(path for root in roots for path in root.rglob("*"))]


def open_to_others(paths: list[Path]) -> dict[Path, str]:
    modes = {path: path.lstat().st_mode for path in paths}
    return {path: stat.filemode(mode) for path, mode in modes.items() if mode & 0o077}


def test_whatever_the_umask_nothing_that_the_agent_creates_is_open_to_others(machine):
    machine.write(commits=2, entities=2)
    machine.set(agent_log_file=machine.home / "logs" / "agent.log")
    with machine.started("run", prefix=WITHOUT_UMASK) as agent:
        machine.status(until=lambda status: status["running"] and not status["pending"])
        for words in (("verify", "--deep"), ("restore", "latest", "--to", str(machine.home / "restored"))):
            assert machine.call(*words, prefix=WITHOUT_UMASK).code == 0
        assert machine.call("hook", "session-end", prefix=WITHOUT_UMASK).code == 0
        found = created(machine)
        assert {path.name for path in found} >= {"control.sock", "ledger.sqlite", "agent.log", "manifest.json"}
        assert open_to_others(found) == {}
        if os.geteuid() == 0:
            process = Path("/proc") / str(agent.pid)
            paths = [*found, process / "environ", process / "mem", process / "fd"]
            tried = subprocess.run(
                [sys.executable, "-c", TRY, *map(str, paths)], check=True, capture_output=True, text=True
            )
            assert tried.stdout == ""
