"""A sync that cannot work now: `sync` and `status` report the obstacle and its fix within seconds."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.support.machine import COMMAND, Machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process states and mounts need Linux")


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.write(commits=20, entities=5)
    return machine


def test_sync_status_and_doctor_report_a_suspended_agent(machine):
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        with agent.suspended():
            message = f"process {agent.pid} (run) does not answer: it is suspended (kill -CONT {agent.pid})"
            status = machine.call("status")
            assert (status.code, message in status.out) == (0, True), status.out
            (warning,) = machine.call("status", "--json").json["warnings"]
            assert (warning["code"], warning["hint"]) == ("agent_stopped", f"kill -CONT {agent.pid}")
            checks = machine.call("doctor", "--json").json["checks"]
            (check,) = [check for check in checks if check["name"] == "agent"]
            assert (check["level"], check["cure"]) == ("error", f"kill -CONT {agent.pid}")
            assert check["found"].endswith("does not answer: it is suspended")
            with machine.started("sync") as sync:
                sync.log.wait(lambda line: message in line.get("text", ""))
                agent.process.send_signal(signal.SIGCONT)
                done = sync.end()
        assert done.code == 0, done.err
        assert done.err.count(message) == 1


@contextmanager
def small_disk(folder, size):
    """A disk of `size` bytes at `folder`; yields the prefix for commands that use it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        pytest.skip("mounting a small disk needs root")
    folder.mkdir(mode=0o700)
    command = f"mount -t tmpfs -o size={size},mode=0700 tmpfs {folder} && echo mounted && cat"
    keeper = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with keeper:
        if keeper.stdout.readline() != "mounted\n":
            pytest.skip("mounting is not permitted")
        yield ["nsenter", "--mount", "--target", str(keeper.pid), "--", COMMAND]
        keeper.stdin.close()


def test_sync_and_status_report_a_full_state_disk(machine):
    with small_disk(machine.state, "4m") as prefix, machine.run(prefix=prefix) as agent:
        agent.logged("sync_failed")
        inside = [*prefix[:-1], "sh", "-c", f"cat /dev/zero > {machine.state}/filling; true"]
        subprocess.run(inside, check=True, stderr=subprocess.DEVNULL)
        with machine.started("sync", prefix=prefix) as sync:
            (line,) = sync.log.wait(lambda line: "is full: a sync needs" in line.get("text", ""))
            assert "bytes there, 0 are free" in line["text"]
        status = machine.call("status", "--json", prefix=prefix)
        (warning,) = status.json["warnings"]
        assert warning["code"] == "state_disk_full"
        assert f"the disk of {machine.state} is full" in warning["message"]
        assert "akosha_agent_state_dir" in warning["hint"]
