"""Builds an agent: adapters from settings, then the application's objects and the signals between them."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb import WarmChild
from agent.adapters.spool import SpoolDirectory, is_note
from agent.adapters.watcher import DirectoryWatcher
from agent.application.agent import Agent
from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.event_stream import EventStream
from agent.application.monitoring.health import SPOOL, WATCH, HealthMonitor
from agent.application.signal import Signal
from agent.application.sync.bus_recovery import BusRecovery
from agent.application.sync.http import HttpSync
from agent.application.sync.request_log import RequestLog
from agent.application.sync.results import ResultRecorder
from agent.application.sync.stall import StallMonitor
from agent.application.sync.subscriber import SyncSubscriber
from agent.application.triggers.file_changes import FileChanges
from agent.application.triggers.inbox import ArchiveEvent, Inbox
from agent.application.triggers.publisher import Publisher
from agent.application.triggers.retry_scheduler import RetryScheduler
from agent.application.triggers.session_ends import SessionEnds
from agent.application.triggers.spool_reader import SpoolReader
from agent.bootstrap.archive import build_prune_loop, build_verify_loop, deep_verifier_opener, verifier_opener
from agent.bootstrap.buses import run_buses, single_sync_buses
from agent.bootstrap.home import Home
from agent.bootstrap.methods import cloud_of, sync_methods
from agent.bootstrap.webhooks import webhook_loops
from agent.domain.databases import database_of
from agent.domain.debounce import DebounceRules
from agent.domain.errors import SettingsError
from agent.domain.events import SyncAsked
from agent.domain.identity import Identity
from agent.domain.naming import EVENT_MAX_AGE
from agent.domain.routing import CLOUD, HTTP, RETRY, RetryRules, SyncPolicy
from agent.ports import (
    Clock,
    DurableBus,
    Ledger,
    Meter,
    NetworkMonitor,
    NoMeter,
    Responder,
    SnapshotTaker,
    Spool,
    Supervisor,
    SyncMethod,
    VolatileBus,
    Watch,
    WebhookSender,
)
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.application.archive.verify_loop import OpenVerifier
    from agent.application.monitoring.remote_control import RemoteControl
    from agent.application.monitoring.supervisor import SupervisorLoop
    from agent.application.triggers.network_changes import NetworkChanges
    from agent.application.triggers.probe_loop import ProbeLoop

OLD_ROLES = (CLOUD, HTTP, "session")
"""Roles of the durable consumers that earlier versions made."""

# What only the running agent needs is imported where it is built: a single sync takes a tenth less time to start.


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAdapters:
    """The adapters of an agent. Those that are None are disabled, or not used by a single sync.

    Results are published on `results_bus`. The requests of a single sync stay in the process.
    The connections of the methods are registered with `stall_monitor`.
    """

    clock: Clock
    bus: VolatileBus
    results_bus: DurableBus
    ledger: Ledger
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]
    stall_monitor: StallMonitor
    watch: Watch
    spool: Spool
    spool_watch: Watch
    meter: Meter
    network_monitor: NetworkMonitor | None = None
    supervisor: Supervisor | None = None
    responder: Responder | None = None
    open_verifier: "OpenVerifier | None" = None
    open_deep_verifier: "OpenVerifier | None" = None
    webhook_sender: WebhookSender | None = None


def supervisor() -> Supervisor:
    """Return the supervisor that the environment names, and remove it from the environment of child processes."""
    from agent.adapters.systemd_notify import SystemdSupervisor  # noqa: PLC0415

    return SystemdSupervisor.of(os.environ)


async def build(
    home: Home,
    identity: Identity,
    *,
    single_sync: bool = False,
    meter: Meter | None = None,
    supervisor: Supervisor | None = None,
    unanswered: Sequence[SyncAsked] = (),
    webhook_sender: WebhookSender | None = None,
) -> Agent:
    """Build an agent, to run or for a single sync. The caller holds the state directory's lock.

    `unanswered` are the requests without an outcome from the previous agent of this process. Raises SettingsError,
    StateError.
    """
    meter = meter or NoMeter()
    settings, clock = home.settings, home.clock
    give_back_large_blocks()
    if single_sync:
        buses = single_sync_buses(settings, identity, clock)
    else:
        buses = await run_buses(settings, identity, clock)
    try:
        machine = await asyncio.to_thread(home.machine)
        ledger = await home.open_ledger()
    except BaseException:
        await buses.volatile.aclose()
        await buses.durable.aclose()
        raise
    warm, stall_monitor = WarmChild(clock), StallMonitor()
    mirror = home.mirror()
    taker = home.taker(warm, meter, mirror)
    methods = sync_methods(settings, home.state, identity, taker, mirror, warm, ledger, clock, machine, stall_monitor)
    rescan_seconds = settings.agent_rescan_seconds
    return assemble(
        settings,
        identity,
        AgentAdapters(
            clock=clock,
            bus=buses.volatile,
            results_bus=buses.durable,
            ledger=ledger,
            taker=taker,
            methods=methods,
            stall_monitor=stall_monitor,
            watch=DirectoryWatcher(
                settings.agent_data_dir,
                wanted=lambda name: database_of(name) is not None,
                rescan_seconds=rescan_seconds,
                clock=clock,
            ),
            spool=SpoolDirectory(home.state.spool, home.codec),
            spool_watch=DirectoryWatcher(home.state.spool, wanted=is_note, rescan_seconds=rescan_seconds, clock=clock),
            meter=meter,
            network_monitor=None if single_sync else _network_monitor(clock),
            supervisor=supervisor,
            responder=buses.responder,
            open_verifier=None if single_sync else verifier_opener(settings, identity, machine, ledger, clock),
            open_deep_verifier=None
            if single_sync
            else deep_verifier_opener(settings, home.state, identity, machine, ledger, clock),
            webhook_sender=webhook_sender,
        ),
        unanswered=unanswered,
    )


def _network_monitor(clock: Clock) -> NetworkMonitor:
    from agent.adapters.network_monitor import MachineNetworkMonitor  # noqa: PLC0415

    return MachineNetworkMonitor(clock)


def assemble(
    settings: Settings, identity: Identity, adapters: AgentAdapters, *, unanswered: Sequence[SyncAsked] = ()
) -> Agent:
    """Build an agent with these adapters."""
    a, s = adapters, settings
    clock, bus, ledger, methods = a.clock, a.bus, a.ledger, a.methods
    system_id, rescan_seconds = identity.system_id, s.agent_rescan_seconds
    policy = SyncPolicy(
        enabled=s.sync_enabled,
        on_session_end=s.upload_on_session_end,
        force_method=s.force_method,
        cloud_configured=s.cloud_configured,
        enable_fallback=s.enable_fallback,
    )
    sync_lock, errors, unreachable = asyncio.Lock(), asyncio.Queue[Exception](), set[str]()
    sync_finished = Signal(clock, "retry")

    # Requests, attempts and results.
    requests = RequestLog(identity, bus, ledger)
    recorder = ResultRecorder(ledger, a.results_bus, clock, a.meter)
    publisher = Publisher(
        policy=policy,
        identity=identity,
        requests=requests,
        ledger=ledger,
        recorder=recorder,
        clock=clock,
        taker=a.taker,
        methods=methods,
    )
    subscribers = [
        SyncSubscriber(
            method,
            bus=bus,
            requests=requests,
            ledger=ledger,
            recorder=recorder,
            clock=clock,
            rules=RetryRules(s.max_retries, s.retry_backoff_seconds),
            policy=policy,
            survey=a.taker.survey,
            sync_lock=sync_lock,
            after_outcome=sync_finished.set,
            errors=errors,
            unreachable=unreachable,
            meter=a.meter,
        )
        for method in methods.values()
    ]

    # Triggers.
    file_changes = FileChanges(
        a.watch,
        publisher,
        ledger,
        clock,
        DebounceRules(s.agent_quiet_seconds, s.agent_deadline_seconds, s.agent_min_interval_seconds),
        enabled=s.agent_upload_on_change,
        busy=sync_lock.locked,
    )
    session_ends = SessionEnds(
        publisher=publisher,
        ledger=ledger,
        stream=a.results_bus,
        clock=clock,
        system_id=system_id,
        timeout_seconds=rescan_seconds,
        busy=sync_lock.locked,
    )
    cloud_target = methods[CLOUD].target if CLOUD in methods else None

    async def record_archive_event(event: ArchiveEvent) -> None:
        from agent.application.archive.command_results import CommandResults  # noqa: PLC0415

        await CommandResults(cloud_target, ledger, clock).record(event)
        if verify_loop is not None:  # it uploads again what the command has found damaged
            verify_loop.signal.set()

    async def request_verification() -> None:
        if verify_loop is None:
            raise SettingsError(
                "the agent verifies no uploads: no bucket is set, or akosha_agent_verify_hours is 0",
                hint="akosha-agent verify",
            )
        await verify_loop.request()

    inbox = Inbox(
        publisher=publisher,
        bus=bus,
        ledger=ledger,
        system_id=system_id,
        session_ends=session_ends,
        is_queued=lambda request_id: any(subscriber.has(request_id) for subscriber in subscribers),
        record_archive_event=record_archive_event,
        outbox_changed=recorder.flush_soon,
    )
    spool_reader = SpoolReader(spool=a.spool, watch=a.spool_watch, inbox=inbox, publisher=publisher, ledger=ledger)

    async def find_lost_events() -> None:
        """Publish requests without an outcome again if the bus may have lost them, and read the spool."""
        await inbox.republish()
        await spool_reader.drain()

    retry_scheduler = RetryScheduler(
        publisher=publisher,
        ledger=ledger,
        clock=clock,
        methods=methods,
        changes=file_changes,
        sync_finished=sync_finished,
        sync_lock=sync_lock,
        rescan_seconds=rescan_seconds,
        route=policy.route,
        before_rescan=find_lost_events,
        unreachable=unreachable,
    )
    network_changes = _network_changes(adapters, retry_scheduler)

    async def republish_requests() -> None:
        session_ends.republish()
        await find_lost_events()
        if not sync_lock.locked():
            await publisher.trigger(RETRY)

    bus_recovery = BusRecovery(
        bus=bus,
        results_bus=a.results_bus,
        ledger=ledger,
        recorder=recorder,
        clock=clock,
        max_age=EVENT_MAX_AGE,
        catch_up=session_ends.catch_up,
        switched=republish_requests,
        old_consumers=[identity.durable(role) for role in OLD_ROLES] if s.over_nats else (),
    )

    # Monitoring.
    health = HealthMonitor(
        clock=clock,
        ledger=ledger,
        watches={WATCH: a.watch, SPOOL: a.spool_watch},
        bus_state=lambda: bus.state,
        period_seconds=rescan_seconds,
        started=file_changes.started,
    )
    cloud = cloud_of(methods)
    agent_service = AgentService(
        route=policy.route,
        state_dir=s.agent_state_dir,
        identity=identity,
        ledger=ledger,
        bus=bus,
        results_bus=a.results_bus,
        taker=a.taker,
        clock=clock,
        subscribers=subscribers,
        file_changes=file_changes,
        inbox=inbox,
        event_stream=EventStream(ledger=ledger, bus=bus, system_id=system_id),
        health=health,
        request_verification=request_verification,
        warnings=cloud.ownership.warnings if cloud else None,
    )
    supervisor_loop = _supervisor_loop(adapters, agent_service, health)
    remote_control = _remote_control(adapters, agent_service)

    # Checks of the uploads in the bucket, and of the memories in Akosha.
    verify_loop = None
    if a.open_verifier is not None and CLOUD in methods:
        verify_loop = build_verify_loop(
            settings,
            identity,
            recorder,
            publisher,
            sync_lock,
            open_verifier=a.open_verifier,
            open_deep_verifier=a.open_deep_verifier,
            target=methods[CLOUD].target,
        )
    probe_loop = _probe_loop(adapters, publisher, sync_lock, rescan_seconds)

    # These loops may be waiting for a sync to finish.
    sync_finished.chain(file_changes.signal)
    sync_finished.chain(session_ends.sync_finished)
    for loop in (verify_loop, probe_loop):
        if loop is not None:
            sync_finished.chain(loop.signal)

    return Agent(
        identity=identity,
        clock=clock,
        ledger=ledger,
        bus=bus,
        results_bus=a.results_bus,
        taker=a.taker,
        methods=methods,
        subscribers=subscribers,
        publisher=publisher,
        recorder=recorder,
        inbox=inbox,
        spool_reader=spool_reader,
        file_changes=file_changes,
        session_ends=session_ends,
        retry_scheduler=retry_scheduler,
        bus_recovery=bus_recovery,
        stall_monitor=a.stall_monitor,
        health=health,
        agent_service=agent_service,
        sync_finished=sync_finished,
        errors=errors,
        restart_seconds=rescan_seconds,
        unanswered=unanswered,
        network_changes=network_changes,
        supervisor_loop=supervisor_loop,
        remote_control=remote_control,
        prune_loop=build_prune_loop(settings, identity, methods, ledger, recorder, clock),
        verify_loop=verify_loop,
        probe_loop=probe_loop,
        webhook_loops=webhook_loops(settings, a.webhook_sender, publisher, recorder, sync_finished),
    )


def _network_changes(adapters: AgentAdapters, retries: RetryScheduler) -> "NetworkChanges | None":
    a = adapters
    if a.network_monitor is None:
        return None
    from agent.application.triggers.network_changes import NetworkChanges  # noqa: PLC0415

    return NetworkChanges(
        network_monitor=a.network_monitor,
        clock=a.clock,
        bus=a.results_bus,
        stall_monitor=a.stall_monitor,
        retries=retries,
    )


def _supervisor_loop(
    adapters: AgentAdapters, agent_service: AgentService, health: HealthMonitor
) -> "SupervisorLoop | None":
    a = adapters
    if a.supervisor is None:
        return None
    from agent.application.monitoring.supervisor import SupervisorLoop  # noqa: PLC0415

    return SupervisorLoop(a.supervisor, agent_service=agent_service, health=health, ledger=a.ledger, clock=a.clock)


def _remote_control(adapters: AgentAdapters, agent_service: AgentService) -> "RemoteControl | None":
    a = adapters
    if a.responder is None:
        return None
    from agent.application.monitoring.remote_control import RemoteControl  # noqa: PLC0415

    return RemoteControl(
        responder=a.responder,
        agent_service=agent_service,
        ledger=a.ledger,
        clock=a.clock,
        bus_state=lambda: a.bus.state,
    )


def _probe_loop(
    adapters: AgentAdapters, publisher: Publisher, sync_lock: asyncio.Lock, rescan_seconds: float
) -> "ProbeLoop | None":
    method = adapters.methods.get(HTTP)
    if not isinstance(method, HttpSync):
        return None
    from agent.application.triggers.probe_loop import ProbeLoop  # noqa: PLC0415

    return ProbeLoop(
        probe=method.probe,
        still_has_memories=method.still_has_memories,
        publisher=publisher,
        clock=adapters.clock,
        sync_lock=sync_lock,
        rescan_seconds=rescan_seconds,
        signal=Signal(adapters.clock, "akosha-probe"),
    )
