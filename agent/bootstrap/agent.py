"""Builds an agent from settings."""

import asyncio
import os
from collections.abc import Sequence

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb import Warm
from agent.adapters.network_monitor import MachineNetworkMonitor
from agent.adapters.spool import SpoolDirectory, is_note
from agent.adapters.systemd_notify import SystemdSupervisor
from agent.adapters.watcher import DirectoryWatcher
from agent.application.agent import Agent
from agent.application.signal import Signal
from agent.application.sync.request_log import RequestLog
from agent.application.sync.results import ResultRecorder
from agent.application.sync.stall import StallMonitor
from agent.application.sync.subscriber import SyncSubscriber
from agent.application.sync.timed_snapshots import TimedSnapshots
from agent.application.triggers.publisher import Publisher
from agent.bootstrap import buses
from agent.bootstrap.archive import verifying, verifying_weekly
from agent.bootstrap.buses import run_buses, single_sync_buses
from agent.bootstrap.home import Home
from agent.bootstrap.methods import cloud_of, sync_methods
from agent.bootstrap.pruning import prune_rounds
from agent.domain.databases import database_of
from agent.domain.events import SyncAsked
from agent.domain.identity import Identity
from agent.domain.routing import RetryRules
from agent.ports import Meter, NoMeter, Responder, Supervisor


def supervisor() -> Supervisor:
    """Return who keeps this process running, as its environment says; from now on, that does not say so any more."""
    return SystemdSupervisor.of(os.environ)


async def build(
    home: Home,
    identity: Identity,
    *,
    single_sync: bool = False,
    meter: Meter | None = None,
    supervisor: Supervisor | None = None,
    left_over: Sequence[SyncAsked] = (),
) -> Agent:
    """Wire an agent, to run or for a single sync. The caller holds the state directory's lock.

    `meter` counts what happens, `supervisor` hears how it is; `left_over` was asked of the agent whose place it takes.
    Raises SettingsError, StateError.
    """
    meter = meter or NoMeter()
    settings, clock = home.settings, home.clock
    give_back_large_blocks()
    name = f"akosha-agent {identity.durable('agent')}"
    control: Responder | None = None
    if single_sync:
        bus, results_bus = single_sync_buses(settings, name, clock)
    else:
        bus, control = await run_buses(settings, name, clock)
        results_bus = bus
    try:
        machine = await asyncio.to_thread(home.machine)
        ledger = await home.open_ledger()
    except BaseException:
        await asyncio.gather(bus.aclose(), results_bus.aclose())
        raise
    warm = Warm()
    taker = TimedSnapshots(home.taker(warm), meter, clock)
    recorder = ResultRecorder(ledger, results_bus, clock, meter)
    requests = RequestLog(identity, bus, ledger)
    stall_monitor = StallMonitor()
    methods = sync_methods(settings, home.state, identity, taker, warm, ledger, clock, machine, stall_monitor)
    sync_lock, sync_finished, faults = asyncio.Lock(), Signal(clock, "retry"), asyncio.Queue[Exception]()
    unreachable: set[str] = set()
    return Agent(
        pruning=prune_rounds(settings, identity, methods, ledger, recorder, clock),
        settings=settings,
        identity=identity,
        clock=clock,
        bus=bus,
        ledger=ledger,
        taker=taker,
        methods=methods,
        subscribers=[
            SyncSubscriber(
                method,
                bus=bus,
                requests=requests,
                ledger=ledger,
                recorder=recorder,
                clock=clock,
                rules=RetryRules(settings.max_retries, settings.retry_backoff_seconds),
                sync_lock=sync_lock,
                after_outcome=sync_finished.set,
                faults=faults,
                unreachable=unreachable,
                still_at_work_seconds=buses.PATIENCE.ack_wait / 3,
                meter=meter,
            )
            for method in methods.values()
        ],
        publisher=Publisher(
            settings=settings,
            identity=identity,
            requests=requests,
            ledger=ledger,
            recorder=recorder,
            clock=clock,
            taker=taker,
            methods=methods,
        ),
        recorder=recorder,
        watch=DirectoryWatcher(
            settings.agent_data_dir,
            wanted=lambda name: database_of(name) is not None,
            rescan_seconds=settings.agent_rescan_seconds,
            clock=clock,
        ),
        spool=SpoolDirectory(home.state.spool, home.codec),
        spool_watch=DirectoryWatcher(
            home.state.spool, wanted=is_note, rescan_seconds=settings.agent_rescan_seconds, clock=clock
        ),
        sync_lock=sync_lock,
        sync_finished=sync_finished,
        faults=faults,
        results_bus=results_bus,
        unreachable=unreachable,
        control=control,
        supervisor=supervisor,
        network_monitor=None if single_sync else MachineNetworkMonitor(clock),
        stall_monitor=stall_monitor,
        verifying=None if single_sync else verifying(settings, identity, machine, ledger, clock),
        verifying_weekly=None
        if single_sync
        else verifying_weekly(settings, home.state, identity, machine, ledger, clock),
        warnings=cloud.ownership.warnings if (cloud := cloud_of(methods)) else None,
        left_over=left_over,
    )
