"""Health of the agent: components that are stuck, and loops that are interrupted.

A component is stuck if it has not made progress for too long; restarting the agent may help. A loop is interrupted
after a transient error (a full disk, for example) and restarts by itself: this is reported, without a restart.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from agent.domain.errors import AkoshaError
from agent.ports import BusState, Clock, Ledger, Watch

OBSERVE_SECONDS = 30.0
"""Interval of the checks. If no check ran for twice this time, the machine was suspended, and all limits start over."""

PERIODS = 3.0
SLACK_SECONDS = 30.0
"""A watch is stuck if it has not scanned its directory for this many periods plus this time."""

LEDGER_SECONDS = 120.0
"""The ledger is stuck if it has not answered for this long. Storing a million memories takes 30 s on a slow disk."""

WATCH, SPOOL, LEDGER = "watch", "spool", "ledger"

_log = structlog.get_logger()


@dataclass(slots=True)
class HealthMonitor:
    """Checks the components while `run` runs. The loops named `watch` and `spool` read the two watches."""

    clock: Clock
    ledger: Ledger
    watches: Mapping[str, Watch]
    bus_state: Callable[[], BusState]
    period_seconds: float
    """Longest interval between two scans of a watch."""
    started: asyncio.Event
    """Set once the watch of the databases has started."""

    _subscribed: bool = field(default=False, init=False)
    _interrupted: dict[str, str] = field(default_factory=dict, init=False)
    _stuck: Mapping[str, str] = field(default_factory=dict, init=False)
    _limit_from: dict[str, float] = field(default_factory=dict, init=False)
    _last_observed: float | None = field(default=None, init=False)
    _probe: asyncio.Task[int] | None = field(default=None, init=False)
    _probe_started: float = field(default=0.0, init=False)
    _listeners: list[Callable[[], None]] = field(default_factory=list, init=False)

    @property
    def ready(self) -> bool:
        """Whether the agent watches the databases and has subscribed to requests; the bus need not be reachable."""
        return self._subscribed and self.started.is_set()

    @property
    def stuck(self) -> Mapping[str, str]:
        """Component -> reason for components that were stuck at the last check."""
        return self._stuck

    def problems(self) -> Mapping[str, str]:
        """Return component -> reason for what is stuck or interrupted."""
        return {**self._interrupted, **self._stuck}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the event loop when the problems change."""
        self._listeners.append(listener)

    async def until_ready(self) -> None:
        """Return when the agent watches the databases. It has subscribed to requests before."""
        await self.started.wait()

    def subscribed(self) -> None:
        """Record that all subscriptions exist."""
        self._subscribed = True

    def interrupted(self, loop: str, reason: str) -> None:
        """Record that a transient error interrupted a loop, which waits before it restarts."""
        self._interrupted[loop] = reason
        self._notify()

    def resumed(self, loop: str) -> None:
        """Record that a loop has restarted, and restart its time limit."""
        self._restart_limit(loop)
        if self._interrupted.pop(loop, None) is not None:
            self._notify()

    async def run(self) -> None:
        """Check all components at the interval, until cancelled."""
        try:
            while True:
                self.observe()
                await self.clock.sleep(OBSERVE_SECONDS)
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.wait({self._probe})

    def observe(self) -> None:
        """Check all components once. Does not block: the answer of the ledger is seen by a later check."""
        now = self.clock.monotonic()
        if self._last_observed is None or now - self._last_observed > 2 * OBSERVE_SECONDS:
            for name in (*self.watches, LEDGER):
                self._restart_limit(name)
        self._last_observed = now
        if not self.bus_state().ready:  # the spool reader waits for the bus
            self._restart_limit(SPOOL)
        stuck: dict[str, str] = {}
        for name, watch in self.watches.items():
            idle = now - max(watch.scanned_at, self._limit_from[name])
            if name not in self._interrupted and idle > PERIODS * self.period_seconds + SLACK_SECONDS:
                stuck[name] = f"no scan of its directory for {idle:.0f} s"
        busy = self._ledger_busy(now)
        if busy > LEDGER_SECONDS:
            stuck[LEDGER] = f"no answer for {busy:.0f} s"
        if stuck.keys() != self._stuck.keys():
            for name in stuck.keys() - self._stuck.keys():
                _log.error("health_degraded", component=name, reason=stuck[name])
            for name in self._stuck.keys() - stuck.keys():
                _log.info("health_recovered", component=name)
            self._stuck = stuck
            self._notify()
        self._stuck = stuck

    def _ledger_busy(self, now: float) -> float:
        """Return the seconds for which the ledger has not answered. If it has, send the next query."""
        if self._probe is not None and not self._probe.done():
            return now - max(self._probe_started, self._limit_from[LEDGER])
        if self._probe is not None and not self._probe.cancelled():
            error = self._probe.exception()
            if error is not None and not isinstance(error, AkoshaError):
                raise error
            # Errors of the ledger are reported by the code that uses it.
        self._probe = asyncio.create_task(_position(self.ledger), name="health-ledger")
        self._probe_started = now
        return 0.0

    def _restart_limit(self, name: str) -> None:
        self._limit_from[name] = self.clock.monotonic()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


async def _position(ledger: Ledger) -> int:
    return await ledger.last_position()
