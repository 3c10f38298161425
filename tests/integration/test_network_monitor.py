"""The machine's source addresses and its time asleep, as the kernel reports them, and the cost of reading them."""

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


def test_each_source_address_is_empty_or_an_address_of_this_machine():
    found = source_addresses()
    assert found is not None
    for family, address in zip((socket.AF_INET, socket.AF_INET6), found, strict=True):
        if address:
            with socket.socket(family, socket.SOCK_DGRAM) as ours:
                ours.bind((address, 0))


def test_the_seconds_asleep_do_not_grow_on_a_running_machine():
    before = seconds_asleep()
    assert before > -0.01
    assert abs(seconds_asleep() - before) < 0.01


def test_source_addresses_are_none_without_a_free_descriptor(monkeypatch):
    def exhausted(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", exhausted)
    assert source_addresses() is None


def test_a_check_of_the_network_takes_less_than_a_millisecond():
    started = time.process_time()
    for _ in range(100):
        source_addresses()
        seconds_asleep()
    assert (time.process_time() - started) / 100 < 0.001


@pytest.fixture
def namespace():
    """A network namespace with only a loopback device, which also serves as the default route."""
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("a network namespace needs root and iproute2")
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", WATCH],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    process.stdin.write("?\n")
    process.stdin.flush()
    if not process.stdout.readline():
        process.wait()
        pytest.skip("creating a network namespace is not permitted")

    def ip(*words: str) -> None:
        subprocess.run(["nsenter", "--net", f"--target={process.pid}", "ip", *words], check=True, capture_output=True)

    def ask() -> list[str]:
        process.stdin.write("?\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        try:
            ip("link", "set", "lo", "up")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("the network namespace cannot be entered")
        yield ip, ask
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_changes_of_a_real_network_are_detected(namespace):
    ip, ask = namespace
    assert ask() == ["", ""]
    ip("address", "add", "10.9.8.7/24", "dev", "lo")
    assert ask() == ["", ""]  # an address without a route
    ip("route", "add", "default", "dev", "lo", "src", "10.9.8.7")
    assert ask() == ["10.9.8.7", ""]
    ip("address", "add", "10.9.8.9/24", "dev", "lo")
    ip("route", "change", "default", "dev", "lo", "src", "10.9.8.9")
    assert ask() == ["10.9.8.9", ""]
    ip("route", "del", "default")
    assert ask() == ["", ""]
