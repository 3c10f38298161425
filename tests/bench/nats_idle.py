"""An agent that has nothing to do, with NATS and without, side by side: what NATS costs while nothing happens."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.idle import START_SECONDS, cpu_seconds
from tests.bench.memory import MEBIBYTE, settled
from tests.bench.nats_counting_proxy import NatsCountingProxy
from tests.bench.report import Line, mebibytes
from tests.support.machine import Machine
from tests.support.servers.nats import NatsServer, running_nats

CPU_BAR = 0.1
PSS_BAR = 80 * MEBIBYTE
REQUEST_SECONDS = 20.0


@dataclass(frozen=True)
class Traffic:
    """What passed the proxy in `seconds`: requests to JetStream, pings, bytes both ways; of so many `consumers`."""

    seconds: float
    consumers: int
    requests: int
    pings: int
    bytes: int


def lines(folder: Path, seconds: float) -> list[Line]:
    """Leave both agents alone for so long, before any upload; return the lines of the table."""
    with running_nats(folder / "nats") as server, NatsCountingProxy(server.url) as proxy:
        machines = {
            "with NATS": Machine(folder / "with", agent_nats_url=proxy.url),
            "without": Machine(folder / "without"),
        }
        memory = {name: _alone(machine) for name, machine in machines.items()}
        processors, traffic = _side_by_side(machines, server, proxy, seconds)
    return [*_asked(traffic), *_used(processors, seconds), *_taken(memory)]


def _alone(machine: Machine) -> float:
    """Return the PSS of an agent that is the only one: pages that two share would count half for each."""
    with machine.run() as agent:
        time.sleep(START_SECONDS)
        return settled(agent.pid)


def _side_by_side(
    machines: dict[str, Machine], server: NatsServer, proxy: NatsCountingProxy, seconds: float
) -> tuple[dict[str, float], Traffic]:
    """Return the processor that each takes, in per cent of a core, and what passes the proxy meanwhile."""
    with ExitStack() as stack:
        agents = [stack.enter_context(machine.run()) for machine in machines.values()]
        time.sleep(START_SECONDS)
        processes = [psutil.Process(agent.pid) for agent in agents]
        requests, pings, passed = proxy.requests, proxy.pings, proxy.bytes
        before, began = [cpu_seconds(process) for process in processes], time.monotonic()
        time.sleep(seconds)
        after, took = [cpu_seconds(process) for process in processes], time.monotonic() - began
        traffic = Traffic(
            took,
            server.monitor("/jsz")["consumers"],
            proxy.requests - requests,
            proxy.pings - pings,
            proxy.bytes - passed,
        )
    used = [100 * (end - start) / took for start, end in zip(before, after, strict=True)]
    return dict(zip(machines, used, strict=True)), traffic


def _asked(traffic: Traffic) -> list[Line]:
    ratio = traffic.requests * REQUEST_SECONDS / (traffic.consumers * traffic.seconds)
    idling = f"idle for {traffic.seconds:.0f} s with NATS"
    return [
        Line(
            f"{idling}: requests to JetStream",
            f"{traffic.requests} of {traffic.consumers} consumers",
            ratio,
            f"a consumer's every {REQUEST_SECONDS:.0f} s at most",
            ratio <= 1,
        ),
        Line(f"{idling}: all that passes", f"{traffic.bytes:,} bytes both ways; pings of ours: {traffic.pings}"),
    ]


def _used(processors: dict[str, float], seconds: float) -> list[Line]:
    there, here = processors.values()
    return [
        *(Line(f"idle for {seconds:.0f} s, {name}: processor", f"{used:.3f} %") for name, used in processors.items()),
        Line(
            "the same: with NATS over without",
            f"{there - here:+.3f} %",
            (there - here) / CPU_BAR,
            f"at most {CPU_BAR} % of a core",
            there - here <= CPU_BAR,
        ),
    ]


def _taken(memory: dict[str, float]) -> list[Line]:
    there, here = memory.values()
    bar = f"under {mebibytes(PSS_BAR)}"
    return [
        Line("idle before the first upload, with NATS: PSS", mebibytes(there), there / PSS_BAR, bar, there < PSS_BAR),
        Line("idle before the first upload, without: PSS", mebibytes(here)),
    ]
