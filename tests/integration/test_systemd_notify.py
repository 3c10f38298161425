"""The sd_notify protocol over a real socket."""

import asyncio
import os
import socket
import sys
import time

import pytest

from agent.adapters.systemd_notify import SystemdSupervisor
from tests.support.notify import notified


def test_each_call_is_one_datagram_of_the_protocol():
    with notified() as notify:
        supervisor = SystemdSupervisor.of({"NOTIFY_SOCKET": notify.address})
        before = time.monotonic_ns() // 1000
        supervisor.ready()
        supervisor.status("two\nlines = one")
        supervisor.keep_alive()
        supervisor.reloading()
        supervisor.stopping()
        ready, status, alive, reloading, stopping = notify.gather()
    assert ready == {"READY": "1", "MAINPID": str(os.getpid())}
    assert status == {"STATUS": "two lines = one"}
    assert alive == {"WATCHDOG": "1"}
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert stopping["STOPPING"] == "1"


def test_the_variables_of_the_supervisor_are_removed_from_the_environment():
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1", "HOME": "/home/x"}
    SystemdSupervisor.of(environ)
    assert environ == {"HOME": "/home/x"}


@pytest.mark.parametrize(
    ("variables", "every"),
    [
        pytest.param({"WATCHDOG_USEC": "30000000"}, 15.0, id="half of the watchdog's time"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0, id="for this process"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None, id="for another process"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="zero"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="not a number"),
        pytest.param({}, None, id="no watchdog"),
    ],
)
def test_the_keep_alive_interval_is_half_of_the_watchdog_timeout(variables, every):
    assert SystemdSupervisor.of({"NOTIFY_SOCKET": "/run/notify", **variables}).keep_alive_seconds == every


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"WATCHDOG_USEC": "30000000"}, id="none"),
        pytest.param({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "30000000"}, id="relative"),
        pytest.param({"NOTIFY_SOCKET": "@", "WATCHDOG_USEC": "30000000"}, id="no name"),
    ],
)
def test_without_a_socket_nothing_is_sent(environ, capsys):
    supervisor = SystemdSupervisor.of(environ)
    assert supervisor.keep_alive_seconds is None
    supervisor.ready()
    supervisor.stopping()
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_an_at_sign_marks_an_abstract_address():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"akosha-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(60)
        SystemdSupervisor.of({"NOTIFY_SOCKET": f"@{name}"}).keep_alive()
        assert listening.recv(100) == b"WATCHDOG=1"


def test_a_missing_supervisor_is_logged_once(capsys):
    with notified() as notify:
        supervisor = SystemdSupervisor(notify.address)
    for _ in range(3):
        supervisor.keep_alive()
    assert capsys.readouterr().out.count("supervisor_not_notified") == 1


def test_a_supervisor_that_does_not_read_does_not_block():
    with notified() as notify:
        supervisor = SystemdSupervisor(notify.address)
        for _ in range(10_000):
            supervisor.status("x" * 900)
        assert 0 < len(notify.gather()) < 10_000


async def test_a_blocked_event_loop_sends_no_keep_alive():
    with notified() as notify:
        supervisor = SystemdSupervisor(notify.address, keep_alive_seconds=0.01)

        async def live() -> None:
            while True:
                supervisor.keep_alive()
                await asyncio.sleep(supervisor.keep_alive_seconds)

        living = asyncio.create_task(live())
        await asyncio.to_thread(notify.wait, lambda reported: "WATCHDOG" in reported)
        notify.gather()
        reported = len(notify.received)
        time.sleep(0.2)  # the loop is blocked
        assert len(notify.gather()) == reported
        await asyncio.to_thread(notify.wait, lambda reported: "WATCHDOG" in reported, since=reported)
        living.cancel()
