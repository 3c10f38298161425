"""An idle agent: CPU, wake-ups, memory and requests to its store.

It runs like a service: it notifies a supervisor's watchdog, and its metrics are scraped once a minute.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.counting_proxy import CountingProxy
from tests.bench.databases import Databases
from tests.bench.memory import PssWatch, idle_pss, wait_for_uploads
from tests.bench.report import Line, mebibytes
from tests.soak.clients import get
from tests.support.machine import Machine
from tests.support.notify import Notify, notified
from tests.support.servers.s3 import S3Server, aws_environment

CPU_BAR = 0.1
SWITCHES_BAR = 2.0
PSS_BARS = {"before": 90_000_000, "after": 130_000_000}
START_SECONDS = 75.0
"""The agent probes its target once, 60 s after its start, and then every hour."""

SCRAPE_SECONDS = 60.0
WATCHDOG_SECONDS = 90
"""As in deploy: prometheus/scrape.yml, and the unit's WatchdogSec."""


@dataclass(frozen=True)
class Idle:
    """`processor`: per cent of one core. `switches`: voluntary context switches a second. `pss`: the maximum, bytes."""

    seconds: float
    processor: float
    switches: float
    pss: int
    connections: int
    bytes: int


@dataclass(frozen=True)
class Scheduling:
    """What the threads of a process have used: `switches` are voluntary context switches, `seconds` of a processor."""

    switches: int
    seconds: float


def scheduling(pid: int) -> Scheduling:
    """Return what the living threads of a process have used so far, to the nanosecond (ticks miss short wake-ups)."""
    switches, nanoseconds = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            ran = int((task / "schedstat").read_text().split()[0])
            switches += int(fields["voluntary_ctxt_switches"])
            nanoseconds += ran
    return Scheduling(switches, nanoseconds / 1e9)


def idle(pid: int, proxy: CountingProxy, seconds: float) -> Idle:
    """Observe an idle agent for `seconds`."""
    connections, count, before, started = (
        proxy.connections,
        proxy.bytes,
        scheduling(pid),
        time.monotonic(),
    )
    time.sleep(seconds)
    elapsed, used = time.monotonic() - started, scheduling(pid)
    with PssWatch(pid) as watch:
        watch.sample()
    return Idle(
        elapsed,
        100 * (used.seconds - before.seconds) / elapsed,
        (used.switches - before.switches) / elapsed,
        max(watch.agent),
        proxy.connections - connections,
        proxy.bytes - count,
    )


def lines(folder: Path, databases: Databases, server: S3Server, seconds: float, size: int) -> list[Line]:
    """Observe an idle agent before its first upload, and for half the time after an upload of `size` MiB."""
    with CountingProxy(server.endpoint) as proxy, notified() as notify:
        machine = Machine(folder, cloud_endpoint=proxy.url, cloud_bucket=server.new_bucket())
        machine.environ |= aws_environment()
        machine.environ |= {"NOTIFY_SOCKET": notify.address, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 10**6)}
        databases.file(size)
        with machine.run() as agent, _supervised(machine, notify):
            time.sleep(START_SECONDS)
            before = idle(agent.pid, proxy, seconds)
            databases.copy_to(size, machine.data)
            wait_for_uploads(agent, 1)
            idle_pss(agent.pid)
            after = idle(agent.pid, proxy, seconds / 2)
    return [*_lines("before", "the first upload", before), *_lines("after", f"one of {size} MiB", after)]


@contextmanager
def _supervised(machine: Machine, notify: Notify) -> Iterator[None]:
    """Receive watchdog notifications and scrape the metrics. Raises RuntimeError if either is missing."""
    stopping, errors = threading.Event(), list[Exception]()

    def supervise() -> None:
        while not stopping.wait(SCRAPE_SECONDS):
            notify.gather()
            try:
                get(machine.state / "control.sock", "/metrics")
            except (OSError, RuntimeError) as error:
                errors.append(error)

    thread = threading.Thread(target=supervise, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    if errors:
        raise RuntimeError(f"the metrics could not be read: {errors[0]}")
    if not any("WATCHDOG" in message for message in notify.gather()):
        raise RuntimeError("no watchdog notification was received")


def _lines(when: str, what: str, usage: Idle) -> list[Line]:
    idling = f"idle for {usage.seconds:.0f} s, {when} {what}"
    traffic = f"{usage.connections} connections, {usage.bytes} bytes"
    bar = PSS_BARS[when]
    return [
        Line(
            f"{idling}: processor",
            f"{usage.processor:.3f} %",
            usage.processor / CPU_BAR,
            f"under {CPU_BAR} % of a core",
            usage.processor < CPU_BAR,
        ),
        Line(
            f"{idling}: voluntary context switches, all threads",
            f"{usage.switches:.2f} a second",
            usage.switches / SWITCHES_BAR,
            f"at most {SWITCHES_BAR:g} a second",
            usage.switches <= SWITCHES_BAR,
        ),
        Line(f"{idling}: requests to the store", traffic, None, "nothing", not (usage.connections or usage.bytes)),
        Line(f"{idling}: PSS", mebibytes(usage.pss), usage.pss / bar, f"under {mebibytes(bar)}", usage.pss < bar),
    ]


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of the process and of its ended children, in steps of 10 ms."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system
