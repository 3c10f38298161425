"""What an agent is made of: what it is given, the rooms made of that, and the loops they have it run."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta

from agent.application.archive.deep_verify import DeepVerifier
from agent.application.archive.prune_loop import PruneLoop
from agent.application.archive.verify import Verifier
from agent.application.archive.verify_loop import VerifyLoop
from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.event_stream import EventStream
from agent.application.monitoring.health import SPOOL, WATCH, HealthMonitor
from agent.application.monitoring.remote_control import RemoteControl
from agent.application.monitoring.supervisor import SupervisorLoop
from agent.application.signal import Signal
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.http import HttpSync
from agent.application.sync.results import ResultRecorder
from agent.application.sync.stall import StallMonitor
from agent.application.sync.subscriber import SyncSubscriber
from agent.application.triggers.file_changes import FileChanges
from agent.application.triggers.inbox import Inbox
from agent.application.triggers.network_changes import NetworkChanges, without_prompt_connect_retries
from agent.application.triggers.probe_loop import ProbeLoop
from agent.application.triggers.publisher import Publisher
from agent.application.triggers.retry_scheduler import RetryScheduler
from agent.application.triggers.session_ends import SessionEnds
from agent.application.triggers.spool_reader import SpoolReader
from agent.domain.debounce import DebounceRules
from agent.domain.events import SyncAsked
from agent.domain.identity import Identity
from agent.domain.naming import EVENT_MAX_AGE
from agent.domain.routing import CLOUD, HTTP, RETRY
from agent.domain.status_warning import StatusWarning
from agent.ports import (
    Clock,
    EventBus,
    Ledger,
    NetworkMonitor,
    Responder,
    SnapshotTaker,
    Spool,
    Supervisor,
    SyncMethod,
    Watch,
)
from agent.settings import Settings

Loop = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Assembly:
    """What is given to an agent, and the rooms made of it."""

    settings: Settings
    identity: Identity
    clock: Clock
    bus: EventBus
    ledger: Ledger
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]
    subscribers: Sequence[SyncSubscriber]
    publisher: Publisher
    recorder: ResultRecorder
    watch: Watch
    spool: Spool
    spool_watch: Watch
    sync_lock: asyncio.Lock
    """Held while a sync runs."""
    sync_finished: Signal
    """Rung by the uploaders after each attempt: retry times may have changed, an outcome may be there."""
    faults: asyncio.Queue[Exception]
    """What the uploaders met that is no outcome."""
    results_bus: EventBus
    """Where the recorder tells results: the bus itself, but for a single sync, whose requests stay in the process."""
    unreachable: Collection[str] = ()
    """Methods that the uploaders could not reach when they were needed last."""
    control: Responder | None = None
    """Who answers questions from outside, where that is switched on."""
    supervisor: Supervisor | None = None
    """Who keeps the agent running and wants to hear how it is."""
    network_monitor: NetworkMonitor | None = None
    """Who notices that the machine slept, or came into another network."""
    stall_monitor: StallMonitor = field(default_factory=StallMonitor)
    """What the methods stand on, told when it may have moved."""
    pruning: PruneLoop | None = None
    """Who deletes old uploads after a new one, where that is switched on."""
    verifying: Callable[[], AbstractAsyncContextManager[Verifier]] | None = None
    """Opens what looks whether an upload is whole, where the agent is to look by itself."""
    verifying_weekly: Callable[[], AbstractAsyncContextManager[Verifier]] | None = None
    """Opens what looks deep, where the agent is to do that."""
    warnings: Callable[[], Awaitable[Sequence[StatusWarning]]] | None = None
    """Computes conditions that the ledger does not keep, at each look at the status."""
    left_over: Sequence[SyncAsked] = ()
    """What was asked of an agent that has given way to this one, and has no outcome yet."""

    agent_service: AgentService = field(init=False)
    """What local processes may ask of the agent, while it runs."""
    _changes: FileChanges = field(init=False)
    _session_ends: SessionEnds = field(init=False)
    _inbox: Inbox = field(init=False)
    _health: HealthMonitor = field(init=False)
    _spool_reader: SpoolReader = field(init=False)
    _bus_watch: BusRecovery = field(init=False)
    _retries: RetryScheduler = field(init=False)

    def __post_init__(self) -> None:
        s, system_id = self.settings, self.identity.system_id
        self._changes = FileChanges(
            self.watch,
            self.publisher,
            self.ledger,
            self.clock,
            DebounceRules(s.agent_quiet_seconds, s.agent_deadline_seconds, s.agent_min_interval_seconds),
            enabled=s.agent_upload_on_change,
            busy=self.sync_lock.locked,
        )
        self.sync_finished.chain(self._changes.signal)
        self._session_ends = SessionEnds(
            publisher=self.publisher,
            ledger=self.ledger,
            clock=self.clock,
            system_id=system_id,
            patience=s.agent_rescan_seconds,
            busy=self.sync_lock.locked,
        )
        self.sync_finished.chain(self._session_ends.sync_finished)
        self._inbox = Inbox(
            publisher=self.publisher,
            bus=self.bus,
            ledger=self.ledger,
            system_id=system_id,
            announced=self.recorder.flush_soon,
        )
        self._spool_reader = SpoolReader(
            spool=self.spool,
            watch=self.spool_watch,
            inbox=self._inbox,
            publisher=self.publisher,
            ledger=self.ledger,
        )
        self._health = HealthMonitor(
            clock=self.clock,
            ledger=self.ledger,
            watches={WATCH: self.watch, SPOOL: self.spool_watch},
            bus_state=lambda: self.bus.state,
            period_seconds=s.agent_rescan_seconds,
            begun=self._changes.begun,
        )
        self.agent_service = AgentService(
            settings=s,
            identity=self.identity,
            ledger=self.ledger,
            bus=self.bus,
            taker=self.taker,
            methods=self.methods,
            inbox=self._inbox,
            feed=EventStream(ledger=self.ledger, bus=self.bus, system_id=system_id),
            health=self._health,
            warnings=self.warnings,
        )
        self._bus_watch = BusRecovery(
            bus=self.results_bus,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
            kept=EVENT_MAX_AGE,
            switched=self._ask_again,
        )
        self._retries = RetryScheduler(
            self.publisher,
            self.ledger,
            self.clock,
            self.methods,
            self._changes,
            sync_finished=self.sync_finished,
            sync_lock=self.sync_lock,
            pass_seconds=s.agent_rescan_seconds,
            before_pass=self._spool_reader.empty,
            unreachable=self.unreachable,
        )

    def _loops(self) -> dict[str, Loop]:
        """Return what the rooms do all the time, by the name of the task."""
        loops: dict[str, Loop] = {
            WATCH: self._changes.listen,
            "debounce": self._changes.ask,
            "retry": self._retries.on_time,
            "stat-pass": self._retries.rescan_loop,
            SPOOL: self._spool_reader.run,
            "session-ends": self._session_ends.run,
            "bus": self._bus_watch.run,
            "outbox": self.recorder.run,
            "vitals": self._health.run,
        }
        if self.supervisor is not None:
            supervision = SupervisorLoop(
                self.supervisor,
                agent_service=self.agent_service,
                health=self._health,
                ledger=self.ledger,
                clock=self.clock,
            )
            loops |= {"sign-of-life": supervision.keep_alive, "status-line": supervision.tell}
        if self.pruning is not None:
            loops |= {"prune": self.pruning.run}
        if self.verifying is not None and CLOUD in self.methods:
            loops |= {"verify": self._daily_look(self.verifying).run}
        loops |= self._probe_loop()
        if self.network_monitor is not None:
            buses = (self.bus,) if self.results_bus is self.bus else (self.bus, self.results_bus)
            roaming = NetworkChanges(self.network_monitor, self.clock, buses, self.stall_monitor, self._retries)
            loops |= {"roaming": roaming.run}
        return loops

    def _daily_look(self, opening: Callable[[], AbstractAsyncContextManager[Verifier]]) -> VerifyLoop:
        signal = Signal(self.clock, "verify")
        self.sync_finished.chain(signal)
        return VerifyLoop(
            opening=opening,
            target=self.methods[CLOUD].target,
            identity=self.identity,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
            taker=self.taker,
            sync_lock=self.sync_lock,
            every=timedelta(hours=self.settings.agent_verify_hours),
            pass_seconds=self.settings.agent_rescan_seconds,
            owed=lambda: self.publisher.noticed(RETRY),
            signal=signal,
            deep=self._deep_verify(),
        )

    def _deep_verify(self) -> DeepVerifier | None:
        if self.verifying_weekly is None:
            return None
        return DeepVerifier(
            opening=self.verifying_weekly,
            identity=self.identity,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
            most_bytes=self.settings.agent_deep_verify_mb * 1_000_000,
        )

    def _probe_loop(self) -> dict[str, Loop]:
        method = without_prompt_connect_retries(self.methods.get(HTTP))
        if not isinstance(method, HttpSync):
            return {}
        signal = Signal(self.clock, "akosha-probe")
        self.sync_finished.chain(signal)
        loop = ProbeLoop(
            probe=method.probe,
            still_has_it=method.still_has_it,
            publisher=self.publisher,
            clock=self.clock,
            sync_lock=self.sync_lock,
            pass_seconds=self.settings.agent_rescan_seconds,
            signal=signal,
        )
        return {"akosha-probe": loop.run}

    def _remote_control(self, responder: Responder) -> RemoteControl:
        return RemoteControl(
            responder=responder,
            agent_service=self.agent_service,
            ledger=self.ledger,
            clock=self.clock,
            bus_state=lambda: self.bus.state,
        )

    async def _ask_again(self) -> None:
        """The bus has changed: what was asked for on the other, and not begun, is asked for on this one."""
        self._session_ends.ask_again()
        await self._inbox.ask_again()
        await self._spool_reader.empty()
        if not self.sync_lock.locked():
            await self.publisher.noticed(RETRY)
