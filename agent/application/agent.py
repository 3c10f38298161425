"""The running agent: its subscriptions and its loops. Every trigger ends in the publisher; the bus delivers from there.

watcher ---> debounce --+
spool, session ends ----+--> publisher --> bus --> subscribers --> recorder --> outbox --> bus
retry times, rescans ---+

`bootstrap.agent` builds the agent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import structlog

from agent.application.archive.prune_loop import PruneLoop
from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.health import SPOOL, WATCH, HealthMonitor
from agent.application.monitoring.status import forget_webhooks
from agent.application.signal import Signal
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.results import ResultRecorder
from agent.application.sync.stall import StallMonitor
from agent.application.sync.subscriber import SyncSubscriber
from agent.application.triggers.file_changes import FileChanges
from agent.application.triggers.inbox import Inbox
from agent.application.triggers.publisher import Publisher
from agent.application.triggers.retry_scheduler import RetryScheduler
from agent.application.triggers.session_ends import SessionEnds
from agent.application.triggers.spool_reader import SpoolReader
from agent.domain import naming
from agent.domain.errors import AkoshaError, BusError, is_transient
from agent.domain.events import SyncAsked, SyncResult, limit_caused_by
from agent.domain.identity import Identity
from agent.domain.routing import STARTUP
from agent.ports import Clock, DurableBus, Ledger, SnapshotTaker, SyncMethod, VolatileBus, reset_clients

if TYPE_CHECKING:  # a single sync does not load what only the running agent needs
    from agent.application.archive.verify_loop import VerifyLoop
    from agent.application.monitoring.remote_control import RemoteControl
    from agent.application.monitoring.supervisor import SupervisorLoop
    from agent.application.triggers.network_changes import NetworkChanges
    from agent.application.triggers.probe_loop import ProbeLoop

Loop = Callable[[], Awaitable[None]]

READY_SECONDS = 1.0
"""Longest time that `once` waits for a bus to become ready."""

PUBLISH_SECONDS = 10.0
"""Longest time that `once` waits for the bus to confirm its result."""

PRUNE_SECONDS = 30.0
"""Longest time that `once` then spends on pruning."""

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Agent:
    """The agent, an async context manager. `run` is the service, `once` a single sync.

    `errors` has the subscribers' errors that are not the outcome of a request. `sync_finished` is set after each
    attempt. A loop that a transient error has ended starts again after `restart_seconds`. At its start, the agent
    submits the requests that the previous agent left `unanswered`.
    """

    identity: Identity
    clock: Clock
    ledger: Ledger
    bus: VolatileBus
    results_bus: DurableBus
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]
    subscribers: Sequence[SyncSubscriber]
    publisher: Publisher
    recorder: ResultRecorder
    inbox: Inbox
    spool_reader: SpoolReader
    file_changes: FileChanges
    session_ends: SessionEnds
    retry_scheduler: RetryScheduler
    bus_recovery: BusRecovery
    stall_monitor: StallMonitor
    health: HealthMonitor
    agent_service: AgentService
    sync_finished: Signal
    errors: asyncio.Queue[Exception]
    restart_seconds: float
    unanswered: Sequence[SyncAsked] = ()
    network_changes: "NetworkChanges | None" = None
    supervisor_loop: "SupervisorLoop | None" = None
    remote_control: "RemoteControl | None" = None
    prune_loop: PruneLoop | None = None
    verify_loop: "VerifyLoop | None" = None
    probe_loop: "ProbeLoop | None" = None
    webhook_loops: Mapping[str, Loop] = field(default_factory=dict)

    _stack: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)

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
            for subscriber in self.subscribers:
                subject = naming.request_subject(self.identity.system_id, subscriber.method.name)
                subscriber.start()
                stack.push_async_callback(subscriber.stop)
                await self.bus.subscribe(subject, subscriber.handle)
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the subscribers, which clean up after themselves, then close everything else."""
        await self._stack.aclose()

    async def run(self) -> None:
        """Run until cancelled. Raises the first error of a loop that is not transient."""
        session = naming.session_subject(self.identity.system_id)
        await self.bus.subscribe(session, self.session_ends.handle)
        if self.remote_control is not None:
            await self.remote_control.start()
        self.health.subscribed()
        async with asyncio.TaskGroup() as group:
            for name, loop in self._loops().items():
                group.create_task(self._keep_running(name, loop), name=name)

    async def once(self, ask: SyncAsked) -> SyncResult:
        """Do one sync, retries and fallback included, and return its result. Raises the error that prevents a result.

        The result answers the session ends whose notes are in the spool when the sync starts, and those that an
        earlier process accepted and did not answer.
        """
        caused_by = await self._open_session_ends()
        done = asyncio.create_task(self._outcome_of(ask, caused_by), name="once")
        failed = asyncio.create_task(self.errors.get(), name="errors")
        try:
            await asyncio.wait({done, failed}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise failed.result()
            await self._publish_results()
            if self.prune_loop is not None and await self.prune_loop.after_sync(PRUNE_SECONDS):
                await self._publish_results()
            return done.result()
        finally:
            for task in (done, failed):
                task.cancel()
            await asyncio.wait({done, failed})

    async def reset_clients(self) -> None:
        """Make stores, servers and buses read credentials and certificates again, and retry failing targets now."""
        await self.stall_monitor.reset_clients()
        await reset_clients(self.results_bus)
        try:
            await self.retry_scheduler.retry_recovered_targets(set(self.methods))
        except AkoshaError as error:  # the retry loop tries again later
            _log.warning("loop_interrupted", loop="retry", error=str(error))

    async def open_asks(self) -> Sequence[SyncAsked]:
        """Return the requests of other processes that have no outcome yet, for the next agent."""
        return await self.inbox.open_asks()

    def _loops(self) -> dict[str, Loop]:
        """Return the loops that run until the agent is cancelled, by task name."""
        loops: dict[str, Loop] = {
            "start": self._start,
            "errors": self._handle_errors,
            WATCH: self.file_changes.watch_loop,
            "debounce": self.file_changes.debounce_loop,
            "retry": self.retry_scheduler.retry_loop,
            "rescan": self.retry_scheduler.rescan_loop,
            SPOOL: self.spool_reader.run,
            "session-ends": self.session_ends.run,
            "bus": self.bus_recovery.run,
            "outbox": self.recorder.run,
            "health": self.health.run,
        }
        if self.supervisor_loop is not None:
            loops["watchdog"] = self.supervisor_loop.watchdog_loop
            loops["status-line"] = self.supervisor_loop.status_loop
        optional = {
            "prune": self.prune_loop,
            "verify": self.verify_loop,
            "akosha-probe": self.probe_loop,
            "network": self.network_changes,
        }
        loops |= {name: component.run for name, component in optional.items() if component is not None}
        return {**loops, **self.webhook_loops}

    async def _keep_running(self, name: str, loop: Loop) -> None:
        """Restart a loop after a transient error, for example a full disk; raise any other error."""
        while True:
            try:
                return await loop()
            except (AkoshaError, RuntimeError) as error:
                if not is_transient(error):
                    raise
                _log.warning("loop_interrupted", loop=name, error=str(error))
                self.health.interrupted(name, str(error))
            await self.clock.sleep(self.restart_seconds)
            self.health.resumed(name)

    async def _start(self) -> None:
        """Request a sync of what changed while no agent ran. The watch starts first, so that no change is missed."""
        _log.info("agent_started", system_id=self.identity.system_id, agent_id=self.identity.agent_id)
        await self.file_changes.started.wait()
        await forget_webhooks(self.ledger, self.webhook_loops)
        for ask in self.unanswered:
            await self.spool_reader.submit(ask)
        await self.publisher.trigger(STARTUP)

    async def _handle_errors(self) -> None:
        """Log a transient error: the subscriber makes another attempt. Raise any other error, which ends the agent."""
        while True:
            error = await self.errors.get()
            if not is_transient(error):
                raise error
            _log.warning("sync_interrupted", error=str(error), system_id=self.identity.system_id)

    async def _open_session_ends(self) -> tuple[str, ...]:
        try:
            await self.spool_reader.drain_for_single_sync()
        except AkoshaError as error:  # the next sync or agent takes the notes: this sync need not fail
            _log.warning("loop_interrupted", loop="spool", error=str(error))
        return limit_caused_by(await self.ledger.open_session_ends())

    async def _outcome_of(self, ask: SyncAsked, caused_by: tuple[str, ...]) -> SyncResult:
        await self.publisher.submit(ask, caused_by=caused_by)
        while (result := await self.ledger.outcome(ask.id)) is None:
            await self.sync_finished.wait(None)
        return result

    async def _publish_results(self) -> None:
        """Publish the outbox if a bus can be reached now; otherwise the next agent on this machine publishes it."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.results_bus.wait_until_ready()
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self.recorder.flush()
        except (BusError, TimeoutError):
            _log.warning(
                "outbox_blocked",
                reason=self.results_bus.state.detail,
                next_step="the next agent that runs publishes the results",
            )
