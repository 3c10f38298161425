"""Two idle agents, with NATS and without: the CPU, memory and traffic that NATS adds."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.idle import START_SECONDS, cpu_seconds
from tests.bench.memory import MEBIBYTE, idle_pss
from tests.bench.nats_counting_proxy import NatsCountingProxy
from tests.bench.report import Line, mebibytes
from tests.support.machine import Machine
from tests.support.servers.nats import NatsServer, running_nats

CPU_BAR = 0.1
PSS_BAR = 80 * MEBIBYTE


@dataclass(frozen=True)
class Traffic:
    """Traffic through the proxy in `seconds`: messages of the agent, pings, and bytes in both directions."""

    seconds: float
    consumers: int
    messages: int
    pings: int
    bytes: int


def lines(folder: Path, seconds: float) -> list[Line]:
    """Observe both idle agents for `seconds`, before any upload; return the lines of the table."""
    with running_nats(folder / "nats") as server, NatsCountingProxy(server.url) as proxy:
        machines = {
            "with NATS": Machine(folder / "with", agent_nats_url=proxy.url),
            "without": Machine(folder / "without"),
        }
        memory = {name: _alone(machine) for name, machine in machines.items()}
        processors, traffic = _side_by_side(machines, server, proxy, seconds)
    return [*_traffic_lines(traffic), *_cpu_lines(processors, seconds), *_memory_lines(memory)]


def _alone(machine: Machine) -> float:
    """Return the PSS of an agent that runs alone: of pages shared by two, each would count half."""
    with machine.run() as agent:
        time.sleep(START_SECONDS)
        return idle_pss(agent.pid)


def _side_by_side(
    machines: dict[str, Machine], server: NatsServer, proxy: NatsCountingProxy, seconds: float
) -> tuple[dict[str, float], Traffic]:
    """Return the CPU use of each agent, in per cent of a core, and the traffic through the proxy."""
    with ExitStack() as stack:
        agents = [stack.enter_context(machine.run()) for machine in machines.values()]
        time.sleep(START_SECONDS)
        processes = [psutil.Process(agent.pid) for agent in agents]
        messages, pings, forwarded = proxy.messages, proxy.pings, proxy.bytes
        before, started = [cpu_seconds(process) for process in processes], time.monotonic()
        time.sleep(seconds)
        after, elapsed = [cpu_seconds(process) for process in processes], time.monotonic() - started
        traffic = Traffic(
            elapsed,
            server.monitor("/jsz")["consumers"],
            proxy.messages - messages,
            proxy.pings - pings,
            proxy.bytes - forwarded,
        )
    used = [100 * (end - start) / elapsed for start, end in zip(before, after, strict=True)]
    return dict(zip(machines, used, strict=True)), traffic


def _traffic_lines(traffic: Traffic) -> list[Line]:
    idling = f"idle for {traffic.seconds:.0f} s with NATS"
    return [
        Line(
            f"{idling}: messages of the agent, and its consumers",
            f"{traffic.messages} messages, {traffic.consumers} consumers",
            float(traffic.messages + traffic.consumers),
            "none: nothing but pings",
            traffic.messages + traffic.consumers == 0,
        ),
        Line(f"{idling}: traffic", f"{traffic.bytes:,} bytes in both directions; {traffic.pings} pings"),
    ]


def _cpu_lines(processors: dict[str, float], seconds: float) -> list[Line]:
    with_nats, without = processors.values()
    return [
        *(Line(f"idle for {seconds:.0f} s, {name}: processor", f"{used:.3f} %") for name, used in processors.items()),
        Line(
            "the same: with NATS minus without",
            f"{with_nats - without:+.3f} %",
            (with_nats - without) / CPU_BAR,
            f"at most {CPU_BAR} % of a core",
            with_nats - without <= CPU_BAR,
        ),
    ]


def _memory_lines(memory: dict[str, float]) -> list[Line]:
    with_nats, without = memory.values()
    bar = f"under {mebibytes(PSS_BAR)}"
    return [
        Line(
            "idle before the first upload, with NATS: PSS",
            mebibytes(with_nats),
            with_nats / PSS_BAR,
            bar,
            with_nats < PSS_BAR,
        ),
        Line("idle before the first upload, without: PSS", mebibytes(without)),
    ]
