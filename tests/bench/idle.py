"""An agent that has nothing to do: what it takes of processor and memory, and what it asks of its store."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.databases import Databases
from tests.bench.door import CountingDoor
from tests.bench.memory import MEBIBYTE, PssWatch, settled, uploaded
from tests.bench.report import Line, mebibytes
from tests.fakes.machine import Machine
from tests.servers.s3 import S3Server, aws_environment

CPU_BAR = 0.2
PSS_BAR = 80 * MEBIBYTE
START_SECONDS = 5.0


@dataclass(frozen=True)
class Idle:
    """`processor`: per cent of one core. `pss`: bytes, the most that was seen."""

    seconds: float
    processor: float
    pss: int
    connections: int
    bytes: int


def idle(pid: int, door: CountingDoor, seconds: float) -> Idle:
    """Watch an agent that is left alone for so long."""
    process = psutil.Process(pid)
    connections, count, before, started = door.connections, door.bytes, cpu_seconds(process), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - started
    with PssWatch(pid) as watch:
        used = cpu_seconds(process) - before
        watch.sample()
    return Idle(passed, 100 * used / passed, max(watch.agent), door.connections - connections, door.bytes - count)


def lines(folder: Path, databases: Databases, server: S3Server, seconds: float, size: int) -> list[Line]:
    """Leave an agent alone before its first upload, and (a fifth of the time) after it with `size` MiB unchanged."""
    with CountingDoor(server.endpoint) as door:
        machine = Machine(folder, cloud_endpoint=door.url, cloud_bucket=server.new_bucket())
        machine.environ |= aws_environment()
        with machine.run() as agent:
            time.sleep(START_SECONDS)
            before = idle(agent.pid, door, seconds)
            databases.place(size, machine.data)
            uploaded(agent, 1)
            settled(agent.pid)
            after = idle(agent.pid, door, seconds / 5)
    return [*_lines("before the first upload", before), *_lines(f"after it, {size} MiB unchanged", after)]


def _lines(when: str, seen: Idle) -> list[Line]:
    idling = f"idle for {seen.seconds:.0f} s, {when}"
    asked = f"{seen.connections} connections, {seen.bytes} bytes"
    found = [
        Line(
            f"{idling}: processor",
            f"{seen.processor:.3f} %",
            seen.processor / CPU_BAR,
            f"under {CPU_BAR} % of a core",
            seen.processor < CPU_BAR,
        ),
        Line(f"{idling}: asked of the store", asked, None, "nothing", not (seen.connections or seen.bytes)),
    ]
    if when.startswith("before"):
        bar = f"under {mebibytes(PSS_BAR)}"
        found.append(Line(f"{idling}: PSS", mebibytes(seen.pss), seen.pss / PSS_BAR, bar, seen.pss < PSS_BAR))
    else:
        found.append(Line(f"{idling}: PSS", mebibytes(seen.pss)))
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process and of the children that it has had; in steps of 10 ms."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system
