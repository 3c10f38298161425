"""The Akosha side: ingest every upload of every system in a bucket into Akosha.

A result on the bus starts the ingest of its system.

The work to do follows from the bucket and the ledger alone. At the start, and at an interval, all systems are checked,
so a missed result only causes a delay. Each system has its own task, and fails alone.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from agent.application.ingest.journal import IngestJournal
from agent.application.ingest.system_ingester import Outages, SystemIngester, SystemOutcome, is_final
from agent.application.ingest.turns import Share, Turns
from agent.application.ingest.upload_ingester import UploadIngester
from agent.application.signal import Signal
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.results import ResultRecorder
from agent.domain import naming
from agent.domain.errors import AkoshaError, BusError, NamingError
from agent.domain.events import Event, SyncSucceeded
from agent.domain.identity import Identity
from agent.ports import Clock, ConsumerBus, Ledger, ObjectStore, reset_clients

ROLE = "react"
"""Role in the name of the durable NATS consumer."""

PASSES = 15
"""With NATS, the bucket is listed on every 15th pass of the rescan loop."""

READY_SECONDS = 5.0
"""Maximum time that `once` waits for the bus."""

_ALL = "all systems"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """The result of `IngestService.once`.

    `failures` maps systems to the error, or to a message that the bucket has no such system.
    """

    outcomes: Mapping[str, SystemOutcome]
    failures: Mapping[str, str]

    @property
    def success(self) -> bool:
        """Whether all uploads were ingested."""
        return not self.failures and not any(outcome.refused for outcome in self.outcomes.values())


@dataclass(slots=True)
class IngestService:
    """Ingests the uploads of a bucket: `run` until cancelled, `once` a single time.

    `systems` are the systems to ingest; empty: all. `bus` is None without NATS; then all systems are checked every
    `rescan_seconds`.
    """

    identity: Identity
    ingest: UploadIngester
    ledger: Ledger
    bus: ConsumerBus | None
    clock: Clock
    systems: Collection[str]
    rescan_seconds: float
    share: Share = field(default_factory=Share)

    _recorder: ResultRecorder | None = field(init=False)
    _journal: IngestJournal = field(init=False)
    _signal: Signal = field(init=False)
    _turns: Turns = field(init=False)
    _outages: Outages = field(default_factory=Outages, init=False)
    _ingesters: dict[str, SystemIngester] = field(default_factory=dict, init=False)
    _group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    def __post_init__(self) -> None:
        self._signal = Signal(self.clock, "react-passes")
        self._turns = Turns(self.clock, share=self.share)
        endpoints = self.ingest.store.location, self.ingest.endpoint
        self._recorder = None if self.bus is None else ResultRecorder(self.ledger, self.bus, self.clock)
        self._journal = IngestJournal(self.ledger, self._recorder, self.identity, self.clock, endpoints=endpoints)

    async def run(self) -> None:
        """Run until cancelled. Raises errors that a retry cannot fix."""
        await self.ingest.unpacker.sweep()
        async with self._group:
            if self.bus is not None and self._recorder is not None:
                recovery = self._bus_recovery(self.bus, self._recorder)
                self._group.create_task(recovery.run(), name="react-bus")
                self._group.create_task(self._recorder.run(), name="react-outbox")
                pattern = naming.results_pattern("*", "succeeded")
                await self.bus.consume(pattern, self._on_result, durable=self.identity.durable(ROLE))
            _log.info(
                "ingest_started",
                agent_id=self.identity.agent_id,
                bucket=self.ingest.store.location,
                akosha=self.ingest.push.sink.location,
                systems=sorted(self.systems) or "all",
            )
            self._group.create_task(self._rescan_loop(), name="react-passes")

    async def reset_clients(self) -> None:
        """Reload the credentials and certificates of store, server and bus; retry all systems that wait, now."""
        await reset_clients(self.ingest.store, self.ingest.push.sink, self.bus)
        for ingester in self._ingesters.values():
            ingester.notify()
        self._signal.set()

    async def once(self, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> IngestSummary:
        """Ingest all uploads, with one attempt each. Raises StoreError if the bucket cannot be listed.

        `on_progress` is called with the number of uploads that are done, and of all that are known so far.
        """
        await self.ingest.unpacker.sweep()
        if self.bus is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(READY_SECONDS):
                    await self.bus.wait_until_ready()
        outcomes: dict[str, SystemOutcome] = {}
        counts: dict[str, tuple[int, int]] = {}

        def report(system_id: str, done: int, total: int) -> None:
            counts[system_id] = done, total
            on_progress(sum(one for one, _ in counts.values()), sum(all_of for _, all_of in counts.values()))

        async def catch_up(system_id: str) -> None:
            try:
                outcomes[system_id] = await self._ingester(system_id).catch_up(partial(report, system_id))
                await self._flush()
            except AkoshaError as error:
                if is_final(error):
                    raise
                failures[system_id] = str(error)

        known = {*await systems_in(self.ingest.store), *await self._journal.systems()}
        absent = sorted(set(self.systems) - known)
        known_names = f"systems there: {', '.join(sorted(known))}" if known else "no system has uploads there"
        failures = dict.fromkeys(absent, f"there is no such system in {self.ingest.store.location} ({known_names})")
        async with asyncio.TaskGroup() as group:
            for system_id in sorted(known.intersection(self.systems) if self.systems else known):
                group.create_task(catch_up(system_id), name=f"react-{system_id}")
        await self._flush()
        return IngestSummary(outcomes, failures)

    async def _on_result(self, event: Event) -> None:
        """Start the system of a result. The result is acked at once: after a kill, the bucket shows what to do."""
        if isinstance(event, SyncSucceeded) and event.manifest_key and self._is_wanted(event.system_id):
            self._running(event.system_id).notify(_upload(event))

    async def _rescan_loop(self) -> None:
        while True:
            try:
                for system_id in await self._all():
                    self._running(system_id).notify_if_idle()
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
                await self._retry_if_akosha_is_back()
                if self.bus is None or not self.bus.state.ready:
                    break

    async def _retry_if_akosha_is_back(self) -> None:
        """Retry the systems that wait for Akosha now, if it can be reached."""
        waiting = [ingester for ingester in self._ingesters.values() if ingester.waits_for_akosha]
        if waiting and await self.ingest.push.sink.is_available():
            for ingester in waiting:
                ingester.notify()

    async def _all(self) -> list[str]:
        """Return the systems to ingest: those set, else those in the bucket or with a cursor."""
        if self.systems:
            return sorted(self.systems)
        return sorted({*await systems_in(self.ingest.store), *await self._journal.systems()})

    def _bus_recovery(self, bus: ConsumerBus, recorder: ResultRecorder) -> BusRecovery:
        """Return what publishes the events of the last days again if the stream has lost them."""
        return BusRecovery(
            bus=bus,
            results_bus=bus,
            ledger=self.ledger,
            recorder=recorder,
            clock=self.clock,
            max_age=naming.EVENT_MAX_AGE,
            catch_up=_nothing,
            switched=self._notify_all,
        )

    async def _flush(self) -> None:
        """Publish the outbox if the bus can be reached now; otherwise the next process publishes it."""
        if self._recorder is not None:
            with suppress(BusError):
                await self._recorder.flush()

    async def _notify_all(self) -> None:
        """Look for uploads of all systems: the bus may have lost results."""
        for ingester in self._ingesters.values():
            ingester.notify_if_idle()

    def _is_wanted(self, system_id: str) -> bool:
        return not self.systems or system_id in self.systems

    def _running(self, system_id: str) -> SystemIngester:
        """Return the system's running ingester; start one if none runs. It ends by itself if there are no uploads."""
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
            journal=self._journal,
            clock=self.clock,
            turns=self._turns,
            outages=self._outages,
        )


async def _nothing() -> None:
    """Do nothing: the consumer of results continues by itself."""


def _upload(event: SyncSucceeded) -> str:
    """Return the upload of a result, "" if it is not an upload ID."""
    try:
        naming.upload_time(event.upload_id or "")
    except NamingError:
        return ""
    return event.upload_id or ""


async def systems_in(store: ObjectStore) -> list[str]:
    """Return the IDs of the systems that have any object, in the order of their keys. Raises StoreError.

    Skips folders whose name is not a system ID.
    """
    return [name async for name in store.folders(naming.SYSTEMS_PREFIX) if naming.is_system_id(name)]
