"""An agent that has nothing to do: what it takes of processor and memory, and what it asks of its store.

It runs as a service does: its supervisor hears its signs of life, and somebody asks for its metrics once a minute.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.counting_proxy import CountingProxy
from tests.bench.databases import Databases
from tests.bench.memory import PssWatch, settled, uploaded
from tests.bench.report import Line, mebibytes
from tests.soak.company import asked
from tests.support.machine import Machine
from tests.support.notify import Notify, notified
from tests.support.servers.s3 import S3Server, aws_environment

CPU_BAR = 0.2
PSS_BARS = {"before": 90_000_000, "after": 130_000_000}
START_SECONDS = 5.0
SCRAPE_SECONDS = 60.0
WATCHDOG_SECONDS = 90
"""As in deploy: prometheus/scrape.yml, and the unit's WatchdogSec."""


@dataclass(frozen=True)
class Idle:
    """`processor`: per cent of one core. `pss`: bytes, the most that was seen."""

    seconds: float
    processor: float
    pss: int
    connections: int
    bytes: int


def idle(pid: int, proxy: CountingProxy, seconds: float) -> Idle:
    """Watch an agent that is left alone for so long."""
    process = psutil.Process(pid)
    connections, count, before, started = (
        proxy.connections,
        proxy.bytes,
        cpu_seconds(process),
        time.monotonic(),
    )
    time.sleep(seconds)
    passed = time.monotonic() - started
    with PssWatch(pid) as watch:
        used = cpu_seconds(process) - before
        watch.sample()
    return Idle(
        passed,
        100 * used / passed,
        max(watch.agent),
        proxy.connections - connections,
        proxy.bytes - count,
    )


def lines(folder: Path, databases: Databases, server: S3Server, seconds: float, size: int) -> list[Line]:
    """Leave an agent alone before its first upload, and (half of the time) after one of `size` MiB."""
    with CountingProxy(server.endpoint) as proxy, notified() as notify:
        machine = Machine(folder, cloud_endpoint=proxy.url, cloud_bucket=server.new_bucket())
        machine.environ |= aws_environment()
        machine.environ |= {"NOTIFY_SOCKET": notify.address, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 10**6)}
        databases.file(size)
        with machine.run() as agent, _looked_after(machine, notify):
            time.sleep(START_SECONDS)
            before = idle(agent.pid, proxy, seconds)
            databases.place(size, machine.data)
            uploaded(agent, 1)
            settled(agent.pid)
            after = idle(agent.pid, proxy, seconds / 2)
    return [*_lines("before", "the first upload", before), *_lines("after", f"one of {size} MiB", after)]


@contextmanager
def _looked_after(machine: Machine, notify: Notify) -> Iterator[None]:
    """Hear the signs of life and ask for the metrics, while the block runs. Raises RuntimeError where none come."""
    over, wrong = threading.Event(), list[Exception]()

    def look() -> None:
        while not over.wait(SCRAPE_SECONDS):
            notify.gather()
            try:
                asked(machine.state / "control.sock", "/metrics")
            except (OSError, RuntimeError) as error:
                wrong.append(error)

    thread = threading.Thread(target=look, name="looking-after", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if wrong:
        raise RuntimeError(f"the metrics were not there: {wrong[0]}")
    if not any("WATCHDOG" in reported for reported in notify.gather()):
        raise RuntimeError("no sign of life was heard")


def _lines(when: str, what: str, seen: Idle) -> list[Line]:
    idling = f"idle for {seen.seconds:.0f} s, {when} {what}"
    asked_of_it = f"{seen.connections} connections, {seen.bytes} bytes"
    bar = PSS_BARS[when]
    return [
        Line(
            f"{idling}: processor",
            f"{seen.processor:.3f} %",
            seen.processor / CPU_BAR,
            f"under {CPU_BAR} % of a core",
            seen.processor < CPU_BAR,
        ),
        Line(f"{idling}: asked of the store", asked_of_it, None, "nothing", not (seen.connections or seen.bytes)),
        Line(f"{idling}: PSS", mebibytes(seen.pss), seen.pss / bar, f"under {mebibytes(bar)}", seen.pss < bar),
    ]


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process and of the children that it has had; in steps of 10 ms."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system
