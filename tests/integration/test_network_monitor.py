"""The kernel's own word on where the machine would send from, and how long it slept; a look costs next to nothing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from agent.adapters.network_monitor import seconds_asleep, source_addresses

ASK = (
    "import json; from agent.adapters.network_monitor import source_addresses;"
    " print(json.dumps(source_addresses()), flush=True)"
)
WATCH = f"import sys\nfor _ in sys.stdin:\n    {ASK}"


def test_the_answer_is_an_address_of_this_machine_or_none_for_each_family():
    found = source_addresses()
    assert found is not None
    for family, address in zip((socket.AF_INET, socket.AF_INET6), found, strict=True):
        if address:
            with socket.socket(family, socket.SOCK_DGRAM) as ours:
                ours.bind((address, 0))


def test_a_machine_that_runs_does_not_sleep():
    before = seconds_asleep()
    assert before > -0.01
    assert abs(seconds_asleep() - before) < 0.01


def test_where_no_socket_can_be_had_nothing_is_said(monkeypatch):
    def exhausted(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", exhausted)
    assert source_addresses() is None


def test_a_look_takes_less_than_a_millisecond_and_leaves_nothing_open():
    begun = time.process_time()
    for _ in range(100):
        source_addresses()
        seconds_asleep()
    assert (time.process_time() - begun) / 100 < 0.001


@pytest.fixture
def namespace():
    """A network of our own, in which there is nothing but a loopback device, which does as a way out."""
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("it takes root and iproute2 to make a network of one's own")
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", WATCH],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    process.stdin.write("?\n")
    process.stdin.flush()
    if not process.stdout.readline():
        process.wait()
        pytest.skip("no network namespace may be made here")

    def do(*words: str) -> None:
        subprocess.run(["nsenter", "--net", f"--target={process.pid}", "ip", *words], check=True, capture_output=True)

    def ask() -> list[str]:
        process.stdin.write("?\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        try:
            do("link", "set", "lo", "up")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("the network namespace cannot be entered")
        yield do, ask
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_a_real_network_that_comes_changes_and_goes_is_seen(namespace):
    do, ask = namespace
    assert ask() == ["", ""]
    do("address", "add", "10.9.8.7/24", "dev", "lo")
    assert ask() == ["", ""]  # an address, and no way out
    do("route", "add", "default", "dev", "lo", "src", "10.9.8.7")
    assert ask() == ["10.9.8.7", ""]
    do("address", "add", "10.9.8.9/24", "dev", "lo")
    do("route", "change", "default", "dev", "lo", "src", "10.9.8.9")
    assert ask() == ["10.9.8.9", ""]
    do("route", "del", "default")
    assert ask() == ["", ""]
