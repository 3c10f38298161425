"""An agent as bootstrap assembles it, with a manual clock and in-memory adapters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from agent.adapters.memory_bus import MemoryBus
from agent.application.agent import Agent
from agent.application.sync.stall import StallMonitor
from agent.bootstrap.agent import AgentAdapters, assemble
from agent.domain.databases import Survey
from agent.domain.errors import CloudUploadError
from agent.domain.events import (
    Event,
    SyncAsked,
    SyncRequested,
)
from agent.domain.identity import Identity
from agent.ports import NoMeter
from agent.settings import Settings
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.consumed_bus import ConsumedMemoryBus
from tests.support.ledger import inline_ledger
from tests.support.method import ScriptedMethod

IDENTITY = Identity("agent-1", values.SYSTEM)
PERMANENT = CloudUploadError("403", "cloud")


class Files:
    """The data directory as the agent sees it: a survey, and a watch that reports changes."""

    mode = "native"

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.stuck_from = clock, None
        self.seen: Survey = {}
        self.reported_late = 0.0
        self.room: int | None = None
        self._queue: asyncio.Queue[frozenset[str]] = asyncio.Queue()

    def change(self, generation: int, *, notified: bool = True) -> None:
        self.seen["reflection"] = values.fingerprint("reflection", generation)
        if notified:
            self._queue.put_nowait(frozenset({"reflection.duckdb.wal"}))

    @property
    def lag(self) -> float:
        return self.reported_late

    @property
    def scanned_at(self) -> float:
        return self.clock.monotonic() if self.stuck_from is None else self.stuck_from

    def hang(self) -> None:
        self.stuck_from = self.clock.monotonic()

    async def free_bytes(self) -> int | None:
        return self.room

    async def survey(self) -> Survey:
        return dict(self.seen)

    async def sweep(self) -> None:
        pass

    async def changes(self) -> AsyncIterator[frozenset[str]]:
        yield frozenset()
        while True:
            yield await self._queue.get()


class Notes:
    """An in-memory spool with its watch."""

    mode = "native"
    lag = 0.0

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.notes: dict[str, Event] = {}
        self._changed = asyncio.Event()

    @property
    def scanned_at(self) -> float:
        return self.clock.monotonic()

    def leave(self, event: Event) -> None:
        self.notes[event.id] = event
        self.set()

    def set(self) -> None:
        self._changed.set()

    async def waiting(self):
        return list(self.notes.items())

    async def remove(self, note: str) -> None:
        del self.notes[note]

    async def changes(self) -> AsyncIterator[frozenset[str]]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield frozenset({"note"})


@dataclass
class SimulatedAgent:
    clock: ManualClock
    files: Files
    notes: Notes
    method: ScriptedMethod
    agent: Agent
    received: list[Event]
    fallback: ScriptedMethod | None = None

    @property
    def reasons(self) -> list[str]:
        return [e.reason for e in self.received if isinstance(e, SyncRequested)]

    async def settle(self) -> None:
        """Run all tasks until each waits, without advancing the time."""
        await self.clock.advance(0)

    async def pass_time(self, seconds: float) -> None:
        """Advance the time to each sleeper's due time in turn, and run all tasks until each waits."""
        end = self.clock.monotonic() + seconds
        await self.settle()
        while (left := end - self.clock.monotonic()) > 0:
            due = self.clock.next_due
            await self.clock.advance(left if due is None else min(left, due))
            await self.settle()


@asynccontextmanager
async def simulated_agent(
    script=(), *, fallback=None, running: bool = True, max_retries: int = 0, unanswered=(),
    stall_monitor=None, network_monitor=None, supervisor=None, webhook_sender=None, **settings,
):  # fmt: skip
    """`script`, `fallback`: the scripts of the cloud method and of an http method, if any."""
    clock = ManualClock(values.NOON)
    files, notes, received = Files(clock), Notes(clock), []
    bus, results_bus = MemoryBus(clock), ConsumedMemoryBus(clock)
    ledger = inline_ledger(clock)
    method = ScriptedMethod(ledger, script)
    methods = {"cloud": method}
    if fallback is not None:
        methods["http"] = ScriptedMethod(ledger, fallback, "http")
    config = Settings(
        cloud_endpoint="file:///bucket", max_retries=max_retries, enable_fallback=fallback is not None, **settings
    )
    agent = assemble(
        config,
        IDENTITY,
        AgentAdapters(
            clock=clock, bus=bus, results_bus=results_bus, ledger=ledger, taker=files, methods=methods,
            stall_monitor=stall_monitor or StallMonitor(), watch=files, spool=notes, spool_watch=notes, meter=NoMeter(),
            network_monitor=network_monitor, supervisor=supervisor, webhook_sender=webhook_sender,
        ),
        unanswered=unanswered,
    )  # fmt: skip

    async def record(event: Event) -> None:
        received.append(event)

    await bus.subscribe("akosha.>", record)
    await results_bus.consume("akosha.>", record, durable="test")
    w = SimulatedAgent(clock, files, notes, method, agent, received)
    w.fallback = methods.get("http")
    async with agent:
        if not running:
            yield w
            return
        task = asyncio.create_task(agent.run())
        await w.settle()
        try:
            yield w
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def ask(**changes) -> SyncAsked:
    return replace(SyncAsked(id="ask-1", time=values.NOON, system_id=values.SYSTEM), **changes)
