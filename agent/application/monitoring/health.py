"""Whether the agent gets on: what of it is stuck, which of its loops wait for something to pass.

Stuck is what does nothing where it should have done something for a long time; a new start may help. A loop that was
interrupted (a full disk, say) starts again by itself: that is reported, and no reason to restart the agent.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from agent.domain.errors import AkoshaError
from agent.ports import BusState, Clock, Ledger, Watch

OBSERVE_SECONDS = 30.0
"""How often is looked. Twice as long without a look, and the machine slept or the process stood still: all patience
starts over."""

PERIODS = 3.0
SLACK_SECONDS = 30.0
"""A watch is stuck that has not looked for so many of its periods, and that much longer."""

LEDGER_SECONDS = 120.0
"""So long may the ledger be at work: to take over a million memories it needs half a minute on a slow disk."""

WATCH, SPOOL, LEDGER = "watch", "spool", "ledger"

_log = structlog.get_logger()


@dataclass(slots=True)
class HealthMonitor:
    """Observes, for as long as `run` does. The loops named `watch` and `spool` are those that read the two watches."""

    clock: Clock
    ledger: Ledger
    watches: Mapping[str, Watch]
    bus_state: Callable[[], BusState]
    period_seconds: float
    """How often, at least, a watch looks."""
    started: asyncio.Event
    """Set once the watch of the databases has begun."""

    _subscribed: bool = field(default=False, init=False)
    _interrupted: dict[str, str] = field(default_factory=dict, init=False)
    _stuck: Mapping[str, str] = field(default_factory=dict, init=False)
    _patient_from: dict[str, float] = field(default_factory=dict, init=False)
    _last_observed: float | None = field(default=None, init=False)
    _probe: asyncio.Task[int] | None = field(default=None, init=False)
    _probed: float = field(default=0.0, init=False)
    _listeners: list[Callable[[], None]] = field(default_factory=list, init=False)

    @property
    def ready(self) -> bool:
        """Whether it watches and hears requests. A bus that is out of reach is waited for, and does not count."""
        return self._subscribed and self.started.is_set()

    @property
    def stuck(self) -> Mapping[str, str]:
        """What was stuck when it was looked at last: name -> why, in words."""
        return self._stuck

    def problems(self) -> Mapping[str, str]:
        """Return what is stuck or interrupted, as it was observed last: name -> why, in words."""
        return {**self._interrupted, **self._stuck}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener`, on the event loop, when the trouble is another."""
        self._listeners.append(listener)

    async def until_ready(self) -> None:
        """Return when it watches; it has subscribed by then."""
        await self.started.wait()

    def subscribed(self) -> None:
        """All subscriptions are made."""
        self._subscribed = True

    def interrupted(self, loop: str, why: str) -> None:
        """A loop was interrupted by what passes, and waits before it begins again."""
        self._interrupted[loop] = why
        self._notify()

    def resumed(self, loop: str) -> None:
        """The loop begins again; it is not at fault for what it has missed."""
        self._reset_patience(loop)
        if self._interrupted.pop(loop, None) is not None:
            self._notify()

    async def run(self) -> None:
        """Observe until cancelled."""
        try:
            while True:
                self.observe()
                await self.clock.sleep(OBSERVE_SECONDS)
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.wait({self._probe})

    def observe(self) -> None:
        """Look once. Cheap; asks the ledger in the background, and sees at later looks whether that came back."""
        now = self.clock.monotonic()
        if self._last_observed is None or now - self._last_observed > 2 * OBSERVE_SECONDS:
            for name in (*self.watches, LEDGER):
                self._reset_patience(name)
        self._last_observed = now
        if not self.bus_state().ready:  # the reader of notes waits for it, with a note in its hand
            self._reset_patience(SPOOL)
        stuck: dict[str, str] = {}
        for name, watch in self.watches.items():
            idle = now - max(watch.scanned_at, self._patient_from[name])
            if name not in self._interrupted and idle > PERIODS * self.period_seconds + SLACK_SECONDS:
                stuck[name] = f"it has not looked at its directory for {idle:.0f} s"
        busy = self._ledger_busy(now)
        if busy > LEDGER_SECONDS:
            stuck[LEDGER] = f"it has not answered for {busy:.0f} s"
        if stuck.keys() != self._stuck.keys():
            for name in stuck.keys() - self._stuck.keys():
                _log.error("health_degraded", component=name, reason=stuck[name])
            for name in self._stuck.keys() - stuck.keys():
                _log.info("health_recovered", component=name)
            self._stuck = stuck
            self._notify()
        self._stuck = stuck

    def _ledger_busy(self, now: float) -> float:
        """Return the time for which the ledger has not answered; asks again where it has."""
        if self._probe is not None and not self._probe.done():
            return now - max(self._probed, self._patient_from[LEDGER])
        if self._probe is not None and not self._probe.cancelled():
            error = self._probe.exception()
            if error is not None and not isinstance(error, AkoshaError):
                raise error
            # Errors of the ledger are reported where it is used.
        self._probe, self._probed = asyncio.create_task(_position(self.ledger), name="vitals-ledger"), now
        return 0.0

    def _reset_patience(self, name: str) -> None:
        self._patient_from[name] = self.clock.monotonic()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


async def _position(ledger: Ledger) -> int:
    return await ledger.last_position()
