"""A process with the buses of many agents, for `make bench-fleet`: real adapter, one connection for each agent.

Commands come as JSON on standard input, one per line; each is answered with a line of JSON on standard output. The
process ends with its input.
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.adapters.nats import Login, NatsOptions
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.results import succeeded
from agent.domain.errors import BusError
from agent.domain.events import SyncResult
from agent.domain.naming import request_subject, session_subject
from agent.domain.routing import CLOUD, HTTP
from tests.bench.report import raise_descriptors
from tests.support import values

CONNECTING_AT_ONCE = 50
RETRY_SECONDS = 1.0

_CLOCK, _CODEC = SystemClock(), CloudEventsCodec()


class FleetAgent:
    """The buses of one agent, with its subscriptions. `returned`: when they were ready after a loss, monotonic."""

    def __init__(self, system: str, buses: NatsBuses) -> None:
        self.system, self.buses, self.returned = system, buses, 0.0
        buses.volatile.on_change(self._changed)

    @classmethod
    async def open(cls, url: str, system: str, *, login: Login) -> "FleetAgent":
        """Connect and subscribe like a running agent."""
        options = NatsOptions(
            servers=(url,), name=f"akosha-agent {system}", inbox_prefix=f"_INBOX.{system}", login=login
        )
        agent = cls(system, NatsBuses(options, _CODEC, clock=_CLOCK))

        async def ignore(_: object) -> None:
            pass

        for subject in (request_subject(system, CLOUD), request_subject(system, HTTP), session_subject(system)):
            await agent.buses.volatile.subscribe(subject, ignore)
        await agent.ready()
        await agent.buses.durable.newest(session_subject(system))
        return agent

    async def ready(self) -> float:
        """Wait until both buses are ready, and return when the volatile one was."""
        await self.buses.durable.wait_until_ready()
        while not self.buses.volatile.state.ready:
            await asyncio.sleep(RETRY_SECONDS)
        return self.returned

    async def _ready_or_pause(self, seconds: float) -> None:
        """Wait until the durable bus becomes ready, at most until the next attempt."""
        if self.buses.durable.state.ready:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.buses.durable.wait_until_ready()

    async def publish(self, label: str, count: int) -> None:
        """Publish `count` results as the outbox does: in order, each until the stream has confirmed it.

        The pause after an error doubles.
        """
        for number in range(count):
            result = result_of(self.system, label, number)
            for failures in itertools.count():
                try:
                    await self.buses.durable.publish(result)
                    break
                except BusError as error:
                    if not error.transient:
                        raise
                await self._ready_or_pause(RETRY_SECONDS * 2.0 ** min(failures, 6))

    def _changed(self) -> None:
        if self.buses.volatile.state.ready:
            self.returned = self.returned or time.monotonic()
        else:
            self.returned = 0.0


def result_of(system: str, label: str, number: int) -> SyncResult:
    """Return a result of a system with an ID that no other one has."""
    upload = values.manifest(number, f"r{number}", reflection=number, knowledge_graph=number)
    result = succeeded(upload, method=CLOUD, location="s3://memories")
    return replace(result, id=f"{label}-{number}", system_id=system, upload_id=f"20250601_120000_{system}")


async def serve(agents: list[FleetAgent]) -> None:
    """Carry out the commands until the input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    commands: dict[str, Callable[..., Awaitable[object]]] = {
        "publish": lambda label, count: each(agent.publish(label, count) for agent in agents),
        "returned": lambda: asyncio.gather(*(agent.ready() for agent in agents)),
    }
    while line := await reader.readline():
        command = json.loads(line)
        print(json.dumps(await commands[command.pop("do")](**command)), flush=True)


async def each(work: Iterable[Awaitable[object]]) -> int:
    """Wait for all and return their number."""
    return len(await asyncio.gather(*work))


async def main(url: str, first: int, count: int, password: str) -> None:
    agents: list[FleetAgent] = []
    for start in range(first, first + count, CONNECTING_AT_ONCE):
        numbers = range(start, min(start + CONNECTING_AT_ONCE, first + count))
        agents += await asyncio.gather(*(_opened(url, f"system-{number}", password) for number in numbers))
    print(json.dumps(len(agents)), flush=True)
    await serve(agents)
    await asyncio.gather(*(agent.buses.aclose() for agent in agents))


async def _opened(url: str, system: str, password: str) -> FleetAgent:
    return await FleetAgent.open(url, system, login=Login(user=system, password=password) if password else Login())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--password", default="", help="of all agents, whose user names are their systems")
    arguments = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    raise_descriptors()
    os.nice(5)  # the server has the machine for itself elsewhere: here it goes first
    asyncio.run(main(arguments.url, arguments.first, arguments.count, arguments.password))
