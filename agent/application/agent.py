"""The running agent: its loops, and who owns them. Every trigger ends in the publisher; the bus does the rest.

watch ----> debounce --+
spool, session ends ---+--> publisher --> bus --> uploaders --> recorder --> outbox --> bus
retry times, stat pass-+
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

import structlog

from agent.application.bus_watch import BusWatch
from agent.application.changes import Changes
from agent.application.daily_look import DailyLook
from agent.application.desk import Desk
from agent.application.feed import Feed
from agent.application.intake import Intake
from agent.application.progress import Footing
from agent.application.prune_rounds import PruneRounds
from agent.application.publisher import Publisher
from agent.application.recorder import Recorder
from agent.application.remote_control import RemoteControl
from agent.application.retries import Retries
from agent.application.roaming import Roaming
from agent.application.session_ends import SessionEnds
from agent.application.spool_reader import SpoolReader
from agent.application.supervision import Supervision
from agent.application.uploader import Uploader
from agent.application.verification import Verification
from agent.application.vitals import SPOOL, WATCH, Vitals
from agent.application.wake import Wake
from agent.domain import naming
from agent.domain.debounce import DebounceRules
from agent.domain.errors import AkoshaError, BusError
from agent.domain.events import SyncAsked, SyncResult
from agent.domain.identity import Identity
from agent.domain.route import CLOUD, RETRY, STARTUP
from agent.ports import (
    Clock,
    EventBus,
    Ledger,
    Responder,
    SnapshotTaker,
    Spool,
    Supervisor,
    Surroundings,
    SyncMethod,
    Watch,
)
from agent.settings import Settings

READY_SECONDS = 1.0
TELL_SECONDS = 10.0
"""How long a single sync, done, waits for a bus to tell its result to, and for the telling."""

PRUNE_SECONDS = 30.0
"""How long it may then take to prune."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Agent:
    """Everything wired together. `run` is the service, `once` a single sync; use as an async context manager."""

    settings: Settings
    identity: Identity
    clock: Clock
    bus: EventBus
    ledger: Ledger
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]
    uploaders: Sequence[Uploader]
    publisher: Publisher
    recorder: Recorder
    watch: Watch
    spool: Spool
    spool_watch: Watch
    flight: asyncio.Lock
    """Held while a sync runs."""
    settled: Wake
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
    surroundings: Surroundings | None = None
    """Who notices that the machine slept, or came into another network."""
    footing: Footing = field(default_factory=Footing)
    """What the methods stand on, told when it may have moved."""
    pruning: PruneRounds | None = None
    """Who deletes old uploads after a new one, where that is switched on."""
    verifying: Callable[[], AbstractAsyncContextManager[Verification]] | None = None
    """Opens what looks whether an upload is whole, where the agent is to look by itself."""
    left_over: Sequence[SyncAsked] = ()
    """What was asked of an agent that has given way to this one, and has no outcome yet."""

    desk: Desk = field(init=False)
    """What local processes may ask of the agent, while it runs."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)
    _changes: Changes = field(init=False)
    _session_ends: SessionEnds = field(init=False)
    _intake: Intake = field(init=False)
    _vitals: Vitals = field(init=False)
    _spool_reader: SpoolReader = field(init=False)
    _bus_watch: BusWatch = field(init=False)
    _retries: Retries = field(init=False)

    def __post_init__(self) -> None:
        s, system_id = self.settings, self.identity.system_id
        self._changes = Changes(
            self.watch,
            self.publisher,
            self.ledger,
            self.clock,
            DebounceRules(s.agent_quiet_seconds, s.agent_deadline_seconds, s.agent_min_interval_seconds),
            enabled=s.agent_upload_on_change,
            busy=self.flight.locked,
        )
        self.settled.also(self._changes.bell)
        self._session_ends = SessionEnds(
            publisher=self.publisher,
            ledger=self.ledger,
            clock=self.clock,
            system_id=system_id,
            patience=s.agent_rescan_seconds,
            busy=self.flight.locked,
        )
        self.settled.also(self._session_ends.settled)
        self._intake = Intake(
            publisher=self.publisher,
            bus=self.bus,
            ledger=self.ledger,
            system_id=system_id,
            announced=self.recorder.flush_soon,
        )
        self._spool_reader = SpoolReader(
            spool=self.spool,
            watch=self.spool_watch,
            intake=self._intake,
            publisher=self.publisher,
            ledger=self.ledger,
        )
        self._vitals = Vitals(
            clock=self.clock,
            ledger=self.ledger,
            watches={WATCH: self.watch, SPOOL: self.spool_watch},
            bus_state=lambda: self.bus.state,
            period_seconds=s.agent_rescan_seconds,
            begun=self._changes.begun,
        )
        self.desk = Desk(
            settings=s,
            identity=self.identity,
            ledger=self.ledger,
            bus=self.bus,
            taker=self.taker,
            methods=self.methods,
            intake=self._intake,
            feed=Feed(ledger=self.ledger, bus=self.bus, system_id=system_id),
            vitals=self._vitals,
        )
        self._bus_watch = BusWatch(
            bus=self.results_bus,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
            kept=timedelta(days=s.agent_nats_max_age_days),
            switched=self._ask_again,
        )
        self._retries = Retries(
            self.publisher,
            self.ledger,
            self.clock,
            self.methods,
            self._changes,
            settled=self.settled,
            flight=self.flight,
            pass_seconds=s.agent_rescan_seconds,
            before_pass=self._spool_reader.empty,
            unreachable=self.unreachable,
        )

    async def __aenter__(self) -> Self:
        """Empty the staging directory and subscribe."""
        stack = self._stack
        stack.push_async_callback(self.ledger.aclose)
        for method in self.methods.values():
            stack.push_async_callback(method.aclose)
        stack.push_async_callback(self.taker.sweep)
        stack.push_async_callback(self.results_bus.aclose)
        stack.push_async_callback(self.bus.aclose)
        try:
            await self.taker.sweep()
            for uploader in self.uploaders:
                name = uploader.method.name
                subject = naming.request_subject(self.identity.system_id, name)
                await self.bus.subscribe(subject, uploader.handle, durable=self.identity.durable(name))
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the uploaders, which clean up after themselves, then let go of everything."""
        await self._stack.aclose()

    async def once(self, ask: SyncAsked) -> SyncResult:
        """Do one sync, retries and fallback included, and return its result. Raises what keeps it from having one."""
        done = asyncio.create_task(self._outcome_of(ask), name="once")
        fault = asyncio.create_task(self.faults.get(), name="faults")
        try:
            await asyncio.wait({done, fault}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise fault.result()
            await self._tell_results()
            if self.pruning is not None and await self.pruning.after_sync(PRUNE_SECONDS):
                await self._tell_results()
            return done.result()
        finally:
            for task in (done, fault):
                task.cancel()
            await asyncio.wait({done, fault})

    async def _outcome_of(self, ask: SyncAsked) -> SyncResult:
        await self.publisher.asked(ask)
        while (result := await self.ledger.outcome(ask.id)) is None:
            await self.settled.wait(None)
        return result

    async def _tell_results(self) -> None:
        """Tell the world, if it can be reached now; else the next agent that runs here does."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.results_bus.wait_until_ready()
            async with asyncio.timeout(TELL_SECONDS):
                await self.recorder.flush()
        except (BusError, TimeoutError):
            _log.warning("results_wait", why=self.results_bus.state.detail, then="the next agent that runs tells them")

    async def _hear_faults(self) -> None:
        """What passes is told, and tried again by itself; a fault of ours takes the agent down, to be seen."""
        while True:
            error = await self.faults.get()
            if not (isinstance(error, AkoshaError) and error.transient):
                raise error
            _log.warning("sync_interrupted", error=str(error), system_id=self.identity.system_id)

    async def run(self) -> None:
        """Run until cancelled. A loop that fails takes the agent down with its error: nothing dies in silence."""
        if self.settings.upload_on_session_end:
            session = naming.session_subject(self.identity.system_id)
            await self.bus.subscribe(session, self._session_ends.handle, durable=self.identity.durable("session"))
        if self.control is not None:
            await self._remote_control(self.control).begin()
        self._vitals.subscribed()
        async with asyncio.TaskGroup() as group:
            for name, loop in self._loops().items():
                group.create_task(self._keep(name, loop), name=name)

    def _loops(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "start": self._start,
            WATCH: self._changes.listen,
            "debounce": self._changes.ask,
            "retry": self._retries.on_time,
            "stat-pass": self._retries.now_and_then,
            SPOOL: self._spool_reader.run,
            "session-ends": self._session_ends.run,
            "bus": self._bus_watch.run,
            "outbox": self.recorder.run,
            "faults": self._hear_faults,
            "vitals": self._vitals.run,
        }
        if self.supervisor is not None:
            supervision = Supervision(
                self.supervisor, desk=self.desk, vitals=self._vitals, ledger=self.ledger, clock=self.clock
            )
            loops |= {"sign-of-life": supervision.keep_alive, "status-line": supervision.tell}
        if self.pruning is not None:
            loops |= {"prune": self.pruning.run}
        if self.verifying is not None and CLOUD in self.methods:
            loops |= {"verify": self._daily_look(self.verifying).run}
        if self.surroundings is not None:
            buses = (self.bus,) if self.results_bus is self.bus else (self.bus, self.results_bus)
            roaming = Roaming(self.surroundings, self.clock, buses, self.footing, self._retries)
            loops |= {"roaming": roaming.run}
        return loops

    async def unanswered(self) -> Sequence[SyncAsked]:
        """Return what was asked of this agent and has no outcome yet: for the one that takes its place."""
        return await self._intake.open_asks()

    def _daily_look(self, opening: Callable[[], AbstractAsyncContextManager[Verification]]) -> DailyLook:
        bell = Wake(self.clock, "verify")
        self.settled.also(bell)
        return DailyLook(
            opening=opening,
            target=self.methods[CLOUD].target,
            identity=self.identity,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
            taker=self.taker,
            flight=self.flight,
            every=timedelta(hours=self.settings.agent_verify_hours),
            pass_seconds=self.settings.agent_rescan_seconds,
            owed=lambda: self.publisher.noticed(RETRY),
            bell=bell,
        )

    def _remote_control(self, responder: Responder) -> RemoteControl:
        return RemoteControl(
            responder=responder,
            desk=self.desk,
            ledger=self.ledger,
            clock=self.clock,
            bus_state=lambda: self.bus.state,
        )

    async def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Begin a loop again that was interrupted by what passes (a full disk, say); let everything else rise."""
        while True:
            try:
                return await loop()
            except AkoshaError as error:
                if not error.transient:
                    raise
                _log.warning("loop_interrupted", loop=name, error=str(error))
                self._vitals.interrupted(name, str(error))
            await self.clock.sleep(self.settings.agent_rescan_seconds)
            self._vitals.resumed(name)

    async def _start(self) -> None:
        """Ask for what changed while no agent ran, once the watch has begun: no change falls between the two."""
        _log.info("agent_started", system_id=self.identity.system_id, agent_id=self.identity.agent_id)
        await self._changes.begun.wait()
        for ask in self.left_over:
            await self._spool_reader.take_up(ask)
        await self.publisher.noticed(STARTUP)

    async def _ask_again(self) -> None:
        """The bus has changed: what was asked for on the other, and not begun, is asked for on this one."""
        self._session_ends.ask_again()
        await self._intake.ask_again()
        await self._spool_reader.empty()
        if not self.flight.locked():
            await self.publisher.noticed(RETRY)
