"""The Akosha side: every upload of every system in a bucket, into Akosha. A result on the bus wakes its system.

What is to be done follows from the bucket and the ledger alone, so a result that was missed is a result that comes
late: at the start, and now and then, all systems are looked at. A system's trouble is its own: each has a task.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from agent.application.ingest.journal import IngestJournal
from agent.application.ingest.system_ingester import Outages, SystemIngester, SystemOutcome, is_final
from agent.application.ingest.turns import Share, Turns
from agent.application.ingest.upload_ingester import UploadIngester
from agent.application.signal import Signal
from agent.domain import naming
from agent.domain.errors import AkoshaError, NamingError
from agent.domain.events import SyncSucceeded
from agent.domain.identity import Identity
from agent.ports import Clock, EventBus, Ledger, Message, ObjectStore, reset_clients

ROLE = "react"
"""Of the durable name under which NATS keeps our place."""

PASSES = 15
"""Where results come over NATS, all systems are looked at once in so many passes."""

READY_SECONDS = 5.0
"""Longest time that a single run waits for the bus to publish its events."""

_ALL = "all systems"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What one catching up has come to; `failures`: system -> what it waits for, or that it has no uploads."""

    caught: Mapping[str, SystemOutcome]
    failures: Mapping[str, str]

    @property
    def success(self) -> bool:
        """Whether all that there is was taken."""
        return not self.failures and not any(caught.refused for caught in self.caught.values())


@dataclass(slots=True)
class IngestService:
    """Everything wired together. `run` is the service, `once` a single catching up.

    `systems`: those to react to, all where it is empty. `bus` is None where there is no NATS: then all systems are
    looked at every `rescan_seconds`.
    """

    identity: Identity
    ingest: UploadIngester
    ledger: Ledger
    bus: EventBus | None
    clock: Clock
    systems: Collection[str]
    rescan_seconds: float
    share: Share = field(default_factory=Share)

    _news: IngestJournal = field(init=False)
    _signal: Signal = field(init=False)
    _turns: Turns = field(init=False)
    _outages: Outages = field(default_factory=Outages, init=False)
    _ingesters: dict[str, SystemIngester] = field(default_factory=dict, init=False)
    _group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    def __post_init__(self) -> None:
        self._signal = Signal(self.clock, "react-passes")
        self._turns = Turns(self.clock, share=self.share)
        endpoints = self.ingest.store.location, self.ingest.endpoint
        self._news = IngestJournal(self.ledger, self.bus, self.identity, self.clock, endpoints=endpoints)

    async def run(self) -> None:
        """Run until cancelled. Raises what no later try mends."""
        await self.ingest.unpacker.sweep()
        async with self._group:
            if self.bus is not None:
                self.bus.on_change(self._notify_all)
                pattern = naming.results_pattern("*", "succeeded")
                await self.bus.subscribe(pattern, self._on_result, durable=self.identity.durable(ROLE))
            _log.info(
                "ingest_started",
                agent_id=self.identity.agent_id,
                bucket=self.ingest.store.location,
                akosha=self.ingest.push.sink.location,
                systems=sorted(self.systems) or "all",
            )
            self._group.create_task(self._now_and_then(), name="react-passes")

    async def reset_clients(self) -> None:
        """Have store, server and bus read credentials and certificates again; retry what waits now."""
        await reset_clients(self.ingest.store, self.ingest.push.sink, self.bus)
        for ingester in self._ingesters.values():
            ingester.notify()
        self._signal.set()

    async def once(self) -> IngestSummary:
        """Take all there is, trying everything once. Raises StoreError where the bucket cannot be listed."""
        await self.ingest.unpacker.sweep()
        if self.bus is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(READY_SECONDS):
                    await self.bus.wait_until_ready()
        caught: dict[str, SystemOutcome] = {}

        async def catch_up(system_id: str) -> None:
            try:
                caught[system_id] = await self._ingester(system_id).catch_up()
            except AkoshaError as error:
                if is_final(error):
                    raise
                failures[system_id] = str(error)

        there = {*await systems_in(self.ingest.store), *await self._news.systems()}
        absent = sorted(set(self.systems) - there)
        named = f"systems there: {', '.join(sorted(there))}" if there else "no system has uploads there"
        failures = dict.fromkeys(absent, f"there is no such system in {self.ingest.store.location} ({named})")
        async with asyncio.TaskGroup() as group:
            for system_id in sorted(there.intersection(self.systems) if self.systems else there):
                group.create_task(catch_up(system_id), name=f"react-{system_id}")
        return IngestSummary(caught, failures)

    async def _on_result(self, message: Message) -> None:
        """A result is a hint: the bucket says what there is to do, also after a kill."""
        event = message.event
        if isinstance(event, SyncSucceeded) and event.manifest_key and self._is_wanted(event.system_id):
            self._running(event.system_id).notify(_upload(event))
        await message.ack()

    async def _now_and_then(self) -> None:
        while True:
            try:
                for system_id in await self._all():
                    self._running(system_id).look()
            except AkoshaError as error:
                if is_final(error):
                    raise
                self._outages.failed(_ALL, error, delay_seconds=self.rescan_seconds)
                await self._signal.wait(self.rescan_seconds)
                continue
            self._outages.passed(_ALL, akosha=False)
            for _ in range(PASSES):
                if await self._signal.wait(self.rescan_seconds):
                    break
                await self._welcome_back()
                if self.bus is None or not self.bus.state.ready:
                    break

    async def _welcome_back(self) -> None:
        """Whoever waits for Akosha need not wait for its time when that is there."""
        waiting = [ingester for ingester in self._ingesters.values() if ingester.waits_for_akosha]
        if waiting and await self.ingest.push.sink.is_available():
            for ingester in waiting:
                ingester.notify()

    async def _all(self) -> list[str]:
        """Return the systems in the bucket, and those that have a position here."""
        if self.systems:
            return sorted(self.systems)
        return sorted({*await systems_in(self.ingest.store), *await self._news.systems()})

    def _notify_all(self) -> None:
        for ingester in self._ingesters.values():
            ingester.look()

    def _is_wanted(self, system_id: str) -> bool:
        return not self.systems or system_id in self.systems

    def _running(self, system_id: str) -> SystemIngester:
        """Return the system's reaction, at work. One that finds nothing ends, so that no event leaves a task behind."""
        if system_id in self._ingesters:
            return self._ingesters[system_id]
        ingester = self._ingesters[system_id] = self._ingester(system_id)

        async def run() -> None:
            try:
                await ingester.run()
            finally:
                del self._ingesters[system_id]

        self._group.create_task(run(), name=f"react-{system_id}")
        return ingester

    def _ingester(self, system_id: str) -> SystemIngester:
        return SystemIngester(
            system_id,
            ingest=self.ingest,
            news=self._news,
            clock=self.clock,
            turns=self._turns,
            outages=self._outages,
        )


def _upload(event: SyncSucceeded) -> str:
    """Return the upload of a result; empty where others wrote something else there."""
    try:
        naming.upload_time(event.upload_id or "")
    except NamingError:
        return ""
    return event.upload_id or ""


PREFIX = "systems/"


async def systems_in(store: ObjectStore) -> list[str]:
    """Return the ids of the systems that have any object, in the order of their keys.

    One short listing for each, and one more. A folder that cannot be a system's is passed over. Raises StoreError.
    """
    found: list[str] = []
    start = PREFIX
    while key := await _first_key(store, start):
        folder, slash, _ = key.removeprefix(PREFIX).partition("/")
        if not slash:
            start = key
            continue
        # What is in the folder begins with "folder/", and "0" is the character after "/".
        start = f"{PREFIX}{folder}0"
        try:
            found.append(naming.check_system_id(folder))
        except NamingError:
            continue
    return found


async def _first_key(store: ObjectStore, start: str) -> str:
    """Return the first key under the prefix after `start`, empty where there is none."""
    listing = store.list(PREFIX, start_after=start)
    try:
        async for item in listing:
            return item.key
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()
    return ""
