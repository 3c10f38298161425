"""`make bench-fleet`: the buses of many agents on one nats-server, and what they cost it.

Exits with 0, also if a bar is missed, unless a measurement fails.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import psutil
import structlog

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.adapters.nats.stream import STREAM
from agent.domain.naming import STREAM_SUBJECTS
from tests.bench import nats_consumer
from tests.bench.nats_counting_proxy import NatsCountingProxy
from tests.bench.report import Line, raise_descriptors, show
from tests.support.servers import nats_hub
from tests.support.servers.nats import NatsServer, connected, running_nats

AGENTS = (1000, 5000)
PROCESSES = 4
RESULTS = 2000
THROUGH_PROXY = 10
"""Agents whose commands are counted by a proxy, in addition to the others."""

MEMORY_BAR = 60_000
BACK_BAR = 60.0
STEP_SECONDS = 0.1
STEP_BAR = 0.1
"""Part of all agents that may reconnect within `STEP_SECONDS`."""

SETTLE_SECONDS, SETTLE_LIMIT_SECONDS, SAMPLE_SECONDS = 20.0, 300.0, 5.0
PASSWORD = "of-the-bench"
DOWN_SECONDS = 20.0
LIMIT_SECONDS = 1800.0
SPARE_DESCRIPTORS = 500


class FleetProcess:
    """A process of `tests.bench.fleet_agents`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, url: str, first: int, count: int, password: str) -> Self:
        script = str(Path(__file__).with_name("fleet_agents.py"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, url, str(first), str(count), f"--password={password}",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        return cls(process)

    @property
    def processor_seconds(self) -> float:
        """The processor time that the process has used."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    async def answer(self) -> object:
        """Wait for the next line. Raises RuntimeError if the process has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of agents ended with {await self._process.wait()}")
        return json.loads(line)

    async def do(self, name: str, **arguments: object) -> object:
        """Have a command carried out and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": name, **arguments}).encode() + b"\n")
        return await self.answer()

    async def end(self) -> None:
        if self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 60)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@dataclass
class Fleet:
    """`count` agents on `server`, in several processes."""

    server: NatsServer
    count: int
    processes: list[FleetProcess] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, server: NatsServer, count: int, *, url: str = "", first: int = 0, password: str = ""
    ) -> AsyncIterator[Self]:
        """Start the processes and wait until all agents are connected; end them at the end."""
        fleet = cls(server, count)
        async with AsyncExitStack() as stack:
            parts = PROCESSES if count >= PROCESSES else 1
            for number in range(parts):
                begin, end = count * number // parts, count * (number + 1) // parts
                process = await FleetProcess.start(url or server.url, first + begin, end - begin, password)
                stack.push_async_callback(process.end)
                fleet.processes.append(process)
            await asyncio.gather(*(process.answer() for process in fleet.processes))
            yield fleet

    async def publish(self, label: str, count: int) -> None:
        """Let each agent publish `count` results; return when the stream has confirmed all."""
        await asyncio.gather(*(process.do("publish", label=label, count=count) for process in self.processes))

    async def returned(self) -> list[float]:
        """Wait until every agent is connected again, and return when each was."""
        answers = await asyncio.gather(*(process.do("returned") for process in self.processes))
        return sorted(at for times in answers for at in times)  # type: ignore[attr-defined]

    @property
    def processor_seconds(self) -> float:
        """The processor time that all agents have used."""
        return sum(process.processor_seconds for process in self.processes)


@dataclass(frozen=True)
class Memory:
    """The server's memory in bytes: resident, and what Go's heap and stacks use."""

    resident: int
    go: int


class Profiler:
    """The profiling port of a nats-server, which shows and collects Go's memory."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.config = f"prof_port: {self._port}"

    async def settled(self, server: NatsServer) -> Memory:
        """Return the memory once it no longer falls: Go returns what it has freed slowly, with 1 % of a processor."""
        settled = self.memory(server)
        deadline, unchanged = time.monotonic() + SETTLE_LIMIT_SECONDS, 0.0
        while unchanged < SETTLE_SECONDS and time.monotonic() < deadline:
            await asyncio.sleep(SAMPLE_SECONDS)
            memory = self.memory(server)
            fallen = memory.resident < settled.resident * 0.99
            settled, unchanged = (memory, 0.0) if fallen else (settled, unchanged + SAMPLE_SECONDS)
        return settled

    def memory(self, server: NatsServer) -> Memory:
        """Collect garbage, and return what is in use."""
        for _ in range(2):
            text = self._heap()
        figures = dict(re.findall(r"^# (\w+) = (\d+)", text, re.MULTILINE))
        stack = re.search(r"^# Stack = (\d+)", text, re.MULTILINE)
        go = int(figures["HeapInuse"]) + int(stack[1] if stack else 0)
        return Memory(psutil.Process(server.pid).memory_info().rss, go)

    def _heap(self) -> str:
        url = f"http://127.0.0.1:{self._port}/debug/pprof/heap?gc=1&debug=1"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
            return str(answer.read(), "ascii", "replace")


async def measure(folder: Path, agents: int, seconds: float) -> list[Line]:
    """Return the lines of the table for a number of agents; `seconds`: how long they are observed while idle."""
    profiler = Profiler()
    with running_nats(folder, config=profiler.config) as server:
        async with asyncio.timeout(LIMIT_SECONDS):
            await nats_consumer.fill(server.url, 1)  # makes the stream
            before = await profiler.settled(server)
            async with Fleet.connected(server, agents) as fleet:
                settled = await profiler.settled(server)
                async with resident_while(server) as resident:
                    idle = await _idle_lines(server, seconds)
                lines = _memory_lines(server, agents, before, settled, resident)
                return [*lines, *idle, *await _result_lines(fleet), *await _restart_lines(fleet)]


async def measure_accounts(folder: Path, agents: int) -> list[Line]:
    """Return the lines for agents that have an account each, as docs/scale.md has them."""
    profiler, systems = Profiler(), [f"system-{number}" for number in range(agents)]
    login = {"nkeys_seed_str": nats_hub.KEYS["ADMIN"].seed}
    stream = {"name": STREAM, "subjects": list(STREAM_SUBJECTS), "allow_direct": True, "max_consumers": 10_000}
    with nats_hub.running_hub(folder / "few", config=f"{nats_hub.configuration()}\n{profiler.config}") as server:
        before = await profiler.settled(server)
    config = f"{nats_hub.configuration_for(systems, PASSWORD)}\n{profiler.config}"
    with nats_hub.running_hub(folder / "many", config=config) as server:
        async with asyncio.timeout(LIMIT_SECONDS), connected(server.url, **login) as admin:
            await admin.jetstream().add_stream(**stream)
            async with Fleet.connected(server, agents, password=PASSWORD) as fleet:
                await fleet.publish("account", 1)
                each = ((await profiler.settled(server)).resident - before.resident) / agents
                state = (await admin.jetstream().stream_info(STREAM)).state
    return [
        Line(f"{agents:,} agents with an account each: memory of the server for each", f"{each / 1000:.1f} kB"),
        Line(
            f"{agents:,} agents with an account each: results and consumers",
            f"{state.messages:,} stored, {state.consumer_count} consumers",
            None,
            f"{agents:,}, 0",
            state.messages == agents and state.consumer_count == 0,
        ),
    ]


@asynccontextmanager
async def resident_while(server: NatsServer) -> AsyncIterator[list[int]]:
    """Yield a list that gets the resident memory of the server at regular times, garbage included."""
    found: list[int] = []

    async def sample() -> None:
        while True:
            found.append(psutil.Process(server.pid).memory_info().rss)
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample(), name="resident")
    try:
        yield found
    finally:
        sampling.cancel()
        await asyncio.wait({sampling})


def _memory_lines(
    server: NatsServer, agents: int, before: Memory, settled: Memory, resident: Sequence[int]
) -> list[Line]:
    each = [(bytes_ - before.resident) / agents for bytes_ in resident]
    middle = statistics.median(each)
    go = (settled.go - before.go) / agents
    connections, consumers = server.monitor("/varz")["connections"], server.monitor("/jsz")["consumers"]
    return [
        Line(f"{agents:,} agents: connections", f"{connections:,}"),
        Line(f"{agents:,} agents: consumers", str(consumers), None, "0", consumers == 0),
        Line(
            f"{agents:,} agents, idle: memory of the server for each",
            f"{middle / 1000:.1f} kB ({min(each) / 1000:.1f}-{max(each) / 1000:.1f}, with garbage)",
            middle / MEMORY_BAR,
            f"at most {MEMORY_BAR / 1000:.0f} kB",
            middle <= MEMORY_BAR,
        ),
        Line(f"{agents:,} agents: of this, in use on Go's heap and stacks", f"{go / 1000:.1f} kB"),
    ]


async def _idle_lines(server: NatsServer, seconds: float) -> list[Line]:
    """Observe the idle agents, and some more through a proxy that counts their commands."""
    with NatsCountingProxy(server.url) as proxy:
        async with Fleet.connected(server, THROUGH_PROXY, url=proxy.url, first=10**6):
            await asyncio.sleep(1)
            counted = proxy.commands, proxy.pings + proxy.pongs, proxy.bytes
            before = server.monitor("/varz")
            await asyncio.sleep(seconds)
            after = server.monitor("/varz")
            commands, pings = proxy.commands - counted[0], proxy.pings + proxy.pongs - counted[1]
            size = proxy.bytes - counted[2]
    messages = sum(after[name] - before[name] for name in ("in_msgs", "out_msgs"))
    each = size / THROUGH_PROXY / seconds
    return [
        Line(f"idle for {seconds:.0f} s: messages of all agents", str(messages), None, "0", messages == 0),
        Line(
            f"idle for {seconds:.0f} s: commands of {THROUGH_PROXY} agents",
            f"{commands}, of which {pings} are pings or their answers; {each:.1f} bytes a second and agent, both ways",
            None,
            "only pings",
            commands == pings,
        ),
    ]


async def _result_lines(fleet: Fleet) -> list[Line]:
    count = max(1, RESULTS // fleet.count)
    started = time.monotonic()
    await fleet.publish("first", count)
    took, total = time.monotonic() - started, count * fleet.count
    rates = await nats_consumer.read(fleet.server.url, "bench", min(total, RESULTS))
    async with connected(fleet.server.url) as client:
        for consumer in await client.jsm().consumers_info(STREAM):
            await client.jsm().delete_consumer(STREAM, consumer.name)
    return [
        Line(f"{total:,} results of {fleet.count:,} agents at once, until confirmed", f"{took:.1f} s"),
        *nats_consumer.lines(f"{total:,} results of {fleet.count:,} agents", rates),
    ]


async def _restart_lines(fleet: Fleet) -> list[Line]:
    """Kill the server while every agent publishes, and start it again after some seconds."""
    server, count = fleet.server, 2
    publishing = asyncio.create_task(fleet.publish("second", count))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.kill)
    used, killed = fleet.processor_seconds, time.monotonic()
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(server.start)
    started = time.monotonic()
    await publishing
    back = max(await fleet.returned()) - started
    used, took = fleet.processor_seconds - used, time.monotonic() - killed
    times = _connection_times(server)
    step = most_within(times, STEP_SECONDS)
    ids = await _stored_ids(server)
    second = {key: number for key, number in ids.items() if "second-" in key}
    lost, doubled = count * fleet.count - len(second), sum(number - 1 for number in ids.values())
    what = f"the server killed and started {DOWN_SECONDS:.0f} s later, while {fleet.count:,} agents publish"
    return [
        Line(f"{what}: all are back", f"{back:.1f} s", back / BACK_BAR, f"{BACK_BAR:.0f} s", back <= BACK_BAR),
        Line(
            "the same: processor time of the agents, from the end of the server on",
            f"{used / fleet.count * 1000:.1f} ms for each; all together {used / took:.1f} of {os.cpu_count()} cores",
        ),
        Line(
            f"the same: most connections that the server took within {STEP_SECONDS * 1000:.0f} ms",
            f"{step} of {len(times):,}, over {times[-1] - times[0]:.1f} s",
            step / fleet.count / STEP_BAR,
            f"at most {STEP_BAR:.0%}",
            step <= STEP_BAR * fleet.count,
        ),
        Line(
            f"the same: {count * fleet.count:,} results, by ID",
            f"{lost} lost, {doubled} stored twice",
            None,
            "0, 0",
            not lost and not doubled,
        ),
    ]


def _connection_times(server: NatsServer) -> list[float]:
    """Return when the server took each connection, in order."""
    connections = server.monitor(f"/connz?limit={10**6}")["connections"]
    return sorted(datetime.fromisoformat(one["start"]).timestamp() for one in connections)


def most_within(times: Sequence[float], seconds: float) -> int:
    """Return the largest number of times in any interval of that length. `times` are in order."""
    return max((bisect_right(times, at + seconds) - number for number, at in enumerate(times)), default=0)


async def _stored_ids(server: NatsServer) -> Counter[str]:
    """Return how often the stream has each event, by system and ID."""
    found: Counter[str] = Counter()
    async with connected(server.url) as client:
        last = (await client.jetstream().stream_info(STREAM)).state.last_seq
        inbox = await client.jetstream().subscribe("akosha.>", stream=STREAM, ordered_consumer=True)
        while True:
            message = await inbox.next_msg(timeout=60)
            event = json.loads(message.data)
            found[f"{event['source']} {event['id']}"] += 1
            if message.metadata.sequence.stream == last:
                await inbox.unsubscribe()
                return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, action="append", help="number of agents; may be given several times")
    parser.add_argument("--idle", type=float, default=60, help="seconds for which idle agents are observed")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print("the bench needs Linux, because it reads /proc", file=sys.stderr)
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    most = raise_descriptors() - SPARE_DESCRIPTORS
    lines: list[Line] = []
    for agents in arguments.agents or AGENTS:
        if agents > most:
            lines.append(Line(f"{agents:,} agents", f"left out: this user may open {most + SPARE_DESCRIPTORS:,} files"))
            continue
        print(f"measuring: {agents} agents", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="akosha-bench-") as scratch:
            lines += asyncio.run(measure(Path(scratch) / "one", agents, arguments.idle))
            if agents == min(arguments.agents or AGENTS):
                lines += asyncio.run(measure_accounts(Path(scratch), agents))
    show(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
